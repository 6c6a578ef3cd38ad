#include <runtime/nccl.h>

#ifdef MEMSIEVE_WITH_CUDA

#include <c10/cuda/CUDAFunctions.h>

#include <chrono>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace memsieve::runtime {

int gpu_count() {
  return c10::cuda::device_count();
}

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                                    c10::Device device, double timeout_seconds) {
  c10::cuda::set_device(device.index());
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = std::chrono::milliseconds(static_cast<int64_t>(timeout_seconds * 1000));
  auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  backend->eagerConnectSingleDevice(device);
  return backend;
}

}  // namespace memsieve::runtime

#else

#include <memsieve/error.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace memsieve::runtime {

int gpu_count() {
  return 0;
}

c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>&, int, int, c10::Device,
                                                    double) {
  throw ConfigError("group: this program was built without CUDA; train on the CPU or build with a CUDA wheel of torch");
}

}  // namespace memsieve::runtime

#endif
