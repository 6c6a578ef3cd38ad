#include "judge/evidence.h"

#include <ATen/ATen.h>

#include <limits>

namespace memsieve {

Evidence evidence(const at::Tensor& windows, const at::Tensor& weights) {
  const auto measured = at::isnan(windows).logical_not();
  const auto n = measured.sum(1).to(at::kFloat);
  const auto sum = at::nansum(windows, 1);
  // One visit needs no root and no quotient: the raw score must come out bit for bit for the published rule.
  const auto terms = windows.size(1) == 1 ? sum : sum / at::sqrt(n.clamp_min(1));
  const auto visits = measured.any(-1).sum(-1);
  const auto score = (terms * weights).sum(-1);
  return {score.masked_fill(visits == 0, std::numeric_limits<double>::quiet_NaN()), visits};
}

at::Tensor with_current(const at::Tensor& past, const at::Tensor& counts, const at::Tensor& current,
                        const at::Tensor& measured) {
  const int64_t length = past.size(1);
  const auto place = at::arange(length, counts.options()).unsqueeze(0);
  const auto here = (place == at::remainder(counts, length).unsqueeze(1)) & measured.unsqueeze(1);
  return at::where(here.unsqueeze(-1), current.unsqueeze(1), past);
}

}  // namespace memsieve
