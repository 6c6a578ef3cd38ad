#pragma once
// Everything that needs CUDA or NCCL. In a build without them there are no GPUs, and the rest cannot be reached.

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace memsieve::runtime {

/// GPUs that this process can see; 0 without a driver.
int gpu_count();

/// COLLECTIVE. NCCL between `size` ranks, connected at once; makes `device` the current one. Throws ConfigError in a
/// build without CUDA.
c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                                    c10::Device device, double timeout_seconds);

}  // namespace memsieve::runtime
