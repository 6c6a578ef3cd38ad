// torch.distributed's process groups as the library's communicators.
#include <memsieve/c10d_communicator.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "bindings.h"

namespace memsieve::python {

std::shared_ptr<Communicator> communicator_of(const py::object& group, at::Device device) {
  if (group.is_none()) return std::make_shared<SoloComm>();
  c10d::ProcessGroup* ranks = nullptr;
  try {
    ranks = group.cast<c10d::ProcessGroup*>();
  } catch (const py::cast_error&) {
    throw ConfigError(std::string("group: is a ") + Py_TYPE(group.ptr())->tp_name +
                      ", not a torch.distributed.ProcessGroup that this rank is a member of");
  }
  try {
    return std::make_shared<C10dComm>(ranks->getBackend(device.type()));
  } catch (const c10::Error& error) {
    throw ConfigError("group: has no back end for device " + device.str() + ": " + one_line(error) +
                      "; make it for that device (backend=\"cpu:gloo,cuda:nccl\"), or close no group that is in use");
  }
}

}  // namespace memsieve::python
