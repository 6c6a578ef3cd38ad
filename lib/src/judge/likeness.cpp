#include "judge/likeness.h"

#include <ATen/ATen.h>

namespace memsieve {

namespace {
constexpr int64_t kRemembered = 256;
// cosine from which rows count as alike; measured in docs/detection.md
constexpr double kAlike = 0.7;
// share of the newest step in the running mean
constexpr double kNewest = 0.02;

/// Tells slots apart in float32, but for one in a million.
at::Tensor mark(const at::Tensor& slot) {
  return (slot.remainder(1 << 20) + 1).to(at::kFloat);
}
}  // namespace

Likeness::Likeness(at::Device device)
    : mean_(at::zeros({kLikenessWidth}, at::device(device).dtype(at::kFloat))),
      steps_(at::zeros({}, at::device(device).dtype(at::kFloat))),
      found_out_(1, kRemembered, kLikenessWidth + 1, device) {}

at::Tensor Likeness::centred(const at::Tensor& features) const {
  const auto rest = features - mean_;
  return rest / rest.norm(2, {-1}, /*keepdim=*/true).clamp_min(1e-6);
}

at::Tensor Likeness::of(const at::Tensor& features, const at::Tensor& slot) const {
  const auto known = at::nan_to_num(found_out_.values().select(0, 0), 0.0);
  // In float64, so that a row's likeness does not depend on the rows beside it.
  const auto cosine =
      at::mm(centred(features).to(at::kDouble), known.slice(1, 0, kLikenessWidth).t().to(at::kDouble)).to(at::kFloat);
  const auto own = mark(slot).unsqueeze(1) == known.select(1, kLikenessWidth);
  const auto closest = std::get<0>(cosine.masked_fill(own, 0).max(1));
  return ((closest - kAlike) / (1 - kAlike)).clamp(0, 1).nan_to_num(0.0);
}

void Likeness::fold(const at::Tensor& features, const at::Tensor& slot, const at::Tensor& counted,
                    const at::Tensor& found_out) {
  const auto known = counted & at::isfinite(features).all(-1);
  const auto rows = known.sum().clamp_min(1);
  const auto mean = at::where(known.unsqueeze(1), features, at::zeros_like(features))
                        .sum(0, /*keepdim=*/false, at::kDouble)
                        .to(at::kFloat) /
                    rows;
  // The plain mean at first, then a running one.
  const auto share = (1 / (steps_ + 1)).clamp_min(kNewest);
  mean_ = mean_ + (mean - mean_) * share;
  steps_ = steps_ + 1;
  found_out_.fold(at::zeros({features.size(0)}, features.options().dtype(at::kLong)),
                  at::cat({centred(features), mark(slot).unsqueeze(1)}, 1), known & found_out);
}

State Likeness::state() {
  return {{"likeness_mean", &mean_},
          {"likeness_steps", &steps_},
          {"likeness", &found_out_.buffer},
          {"likeness_count", &found_out_.count}};
}

}  // namespace memsieve
