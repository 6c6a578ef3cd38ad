#pragma once
// Weights with a NaN or Inf give nothing but NaN: better said when they are read.

#include <ATen/core/Tensor.h>

#include <string>

namespace memsieve::diffusion {

/// DataError, beginning with `from` and naming `name`, if `values` hold a NaN or Inf. Waits for the device.
void require_finite(const std::string& name, const at::Tensor& values, const std::string& from);

}  // namespace memsieve::diffusion
