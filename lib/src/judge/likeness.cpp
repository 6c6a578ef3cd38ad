#include "judge/likeness.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace memsieve {

namespace {
// so many others among them, and a row is probed before all that have fewer
constexpr double kMany = 4;
// share of the newest step in the running mean
constexpr double kNewest = 0.02;
constexpr int64_t kWidth = kLikenessWidth;

/// Tells ids apart in float32, but for one in sixteen million.
at::Tensor mark(const at::Tensor& id) {
  return (id.remainder((1 << 24) - 1) + 1).to(at::kFloat);
}

/// [B, V]: cosines of units [B, kWidth] float64 with the first columns of a ring [V, W]; NaN where either is none.
at::Tensor cosines(const at::Tensor& units, const at::Tensor& ring) {
  return at::mm(units, ring.slice(1, 0, kWidth).t().to(at::kDouble));
}

/// [B, V] bool: places of a ring whose column `which` is mine [B].
at::Tensor same(const at::Tensor& mine, const at::Tensor& ring, int64_t which) {
  return mine.unsqueeze(1) == ring.select(1, which);
}

/// [B] bool: at least two different marks [V] are among `which` [B, V].
at::Tensor at_least_two(const at::Tensor& which, const at::Tensor& marks) {
  const double none = std::numeric_limits<float>::infinity();
  const auto all = marks.expand_as(which), lowest = at::where(which, all, at::full_like(marks, none)).amin(1),
             highest = at::where(which, all, at::full_like(marks, -none)).amax(1);
  return lowest < highest;
}
}  // namespace

Likeness::Options Likeness::Options::of(double cosine, double discount, int64_t samples) {
  return {cosine, discount, std::clamp<int64_t>(samples / 8, 512, 16384),
          std::clamp<int64_t>(samples / 16, 1024, 8192)};
}

Likeness::Likeness(const Options& options, int64_t channels, at::Device device)
    : options_(options),
      mean_(at::zeros({kWidth}, at::device(device).dtype(at::kFloat))),
      steps_(at::zeros({}, at::device(device).dtype(at::kFloat))),
      seen_(1, options.seen, kWidth + 1, device),
      measured_(1, options.measured, kWidth + 2 + channels, device),
      powers_(at::pow(options.discount, at::arange(options.measured, at::device(device).dtype(at::kDouble)))) {}

at::Tensor Likeness::centred(const at::Tensor& features) const {
  const auto rest = features - mean_;
  return rest / rest.norm(2, {-1}, /*keepdim=*/true).clamp_min(1e-6);
}

std::pair<at::Tensor, at::Tensor> Likeness::summed(const at::Tensor& near, const at::Tensor& z) const {
  const auto counts = near & at::isfinite(z);
  const auto rank = (counts.cumsum(1) - 1).clamp_min(0);
  const auto weight = powers_.index_select(0, rank.flatten()).view_as(rank) * counts;
  return {at::mv(weight, at::nan_to_num(z, 0.0)), counts.sum(1)};
}

Neighbours Likeness::of(const at::Tensor& features, const at::Tensor& sample, const at::Tensor& slot) const {
  // In float64, so that a row's neighbours do not depend on the rows beside it.
  const auto units = centred(features).to(at::kDouble);
  const auto mine = mark(sample), my_slot = mark(slot);
  const auto seen = seen_.values().select(0, 0);
  const auto copies = (cosines(units, seen) >= options_.cosine) & same(mine, seen, kWidth).logical_not();
  const auto age = at::arange(options_.measured, slot.options());
  const auto measured =
      measured_.values().select(0, 0).index_select(0, at::remainder(measured_.counts() - 1 - age, options_.measured));
  const auto near = (cosines(units, measured) >= options_.cosine) | same(my_slot, measured, kWidth + 1);
  std::vector<at::Tensor> sums, visits;
  for (int64_t c = kWidth + 2; c < measured.size(1); ++c) {
    const auto [sum, count] = summed(near, measured.select(1, c).to(at::kDouble));
    sums.push_back(sum);
    visits.push_back(count);
  }
  return {(copies.sum(1) / kMany).clamp_max(1).to(at::kFloat),
          {at::stack(sums, 1).to(at::kFloat), at::stack(visits, 1).to(at::kShort)},
          at_least_two(near & same(mine, measured, kWidth).logical_not(), measured.select(1, kWidth))};
}

void Likeness::fold_seen(const at::Tensor& features, const at::Tensor& sample, const at::Tensor& counted) {
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
  seen_.fold(at::zeros_like(sample), at::cat({centred(features), mark(sample).unsqueeze(1)}, 1), known);
}

void Likeness::fold_measured(const at::Tensor& features, const at::Tensor& sample, const at::Tensor& slot,
                             const at::Tensor& z, const at::Tensor& counted) {
  const auto marks = at::stack({mark(sample), mark(slot)}, 1);
  measured_.fold(at::zeros_like(sample), at::cat({centred(features), marks, z}, 1), counted & at::isfinite(z).any(-1));
}

State Likeness::state() {
  return {{"likeness_mean", &mean_},        {"likeness_steps", &steps_},
          {"likeness_seen", &seen_.buffer}, {"likeness_seen_count", &seen_.count},
          {"likeness", &measured_.buffer},  {"likeness_count", &measured_.count}};
}

}  // namespace memsieve
