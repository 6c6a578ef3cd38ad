#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/models/finite_weights.h>

#include <cmath>

namespace memsieve::diffusion {

void require_finite(const std::string& name, const at::Tensor& values, const std::string& from) {
  if (values.numel() == 0 || !values.is_floating_point()) return;
  const auto [least, most] = at::aminmax(values);  // both are NaN if any value is
  if (std::isfinite(least.item<double>()) && std::isfinite(most.item<double>())) return;
  throw DataError(from + ": " + name + " holds a NaN or Inf; start from weights that do not");
}

}  // namespace memsieve::diffusion
