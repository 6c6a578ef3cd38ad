#pragma once
// Consecutive rows that a budget is counted over. Private to the library.

#include <ATen/ATen.h>

#include <limits>

namespace memsieve {

/// [B] -> [blocks, block], the last block filled up with -inf.
inline at::Tensor in_blocks(const at::Tensor& values, int64_t block) {
  const int64_t missing = (block - values.size(0) % block) % block;
  return at::constant_pad_nd(values, {0, missing}, -std::numeric_limits<double>::infinity()).reshape({-1, block});
}

}  // namespace memsieve
