#include "signals/features.h"

#include <ATen/ATen.h>
#include <memsieve/detail/hash.h>

#include <cmath>
#include <vector>

namespace memsieve {

namespace {
at::Tensor projection(int64_t features, at::Device device) {
  std::vector<float> signs(static_cast<size_t>(features * kLikenessWidth));
  uint64_t bits = 0;
  for (size_t i = 0; i < signs.size(); ++i) {
    if (i % 64 == 0) bits = detail::split_mix64(i / 64);
    signs[i] = ((bits >> (i % 64)) & 1) != 0 ? 1.F : -1.F;
  }
  return at::tensor(signs, at::kFloat).reshape({features, kLikenessWidth}).to(device, at::kDouble);
}
}  // namespace

at::Tensor project_likeness(const at::Tensor& features) {
  // In float64, so that a row's features do not depend on the rows beside it.
  const auto flat = features.detach().to(at::kDouble).flatten(1);
  // Made once for each width and device; rebuilding it would cost more than the product.
  thread_local at::Tensor matrix;
  if (!matrix.defined() || matrix.size(0) != flat.size(1) || matrix.device() != flat.device())
    matrix = projection(flat.size(1), flat.device());
  return (at::mm(flat, matrix) / std::sqrt(static_cast<double>(flat.size(1) * kLikenessWidth))).to(at::kFloat);
}

}  // namespace memsieve
