#pragma once
// Private to the library.

#include <ATen/core/Tensor.h>

namespace memsieve {

/// A copy that the host does not wait for: from memory that is not pinned it would.
inline at::Tensor to_device(const at::Tensor& tensor, at::Device device) {
  if (!tensor.is_cpu() || device.is_cpu()) return tensor.to(device);
  return tensor.contiguous().pin_memory().to(device, /*non_blocking=*/true);
}

}  // namespace memsieve
