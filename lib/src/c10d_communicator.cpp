#include <ATen/ATen.h>
#include <memsieve/c10d_communicator.h>
#include <memsieve/error.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace memsieve {

namespace {

/// What c10d said, without the place in its sources that Gloo begins with: "[/path/to/file.cc:81] Connection closed".
std::string without_place(const std::string& text) {
  const size_t end = text.rfind('[', 0) == 0 ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

}  // namespace

C10dComm::C10dComm(c10::intrusive_ptr<c10d::Backend> backend) : backend_(std::move(backend)) {}
C10dComm::~C10dComm() = default;
int64_t C10dComm::rank() const {
  return backend_->getRank();
}
int64_t C10dComm::size() const {
  return backend_->getSize();
}

at::Tensor C10dComm::all_gather(const at::Tensor& record) {
  std::vector<at::Tensor> inputs{record};
  at::Tensor all = at::empty({size(), record.numel()}, record.options());
  std::vector<std::vector<at::Tensor>> outputs{all.unbind(0)};
  try {
    backend_->allgather(outputs, inputs)->wait();
  } catch (const std::exception& error) {
    throw PeerError("rank " + std::to_string(rank()) +
                        ": a peer is gone or did not come to the gather: " + without_place(one_line(error)),
                    std::current_exception());
  }
  // Some back ends replace the list's tensors instead of writing through them.
  return outputs[0][0].data_ptr() == all.data_ptr() ? all : at::stack(outputs[0]);
}

}  // namespace memsieve
