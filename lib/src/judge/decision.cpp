#include "judge/decision.h"

#include "judge/window.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace memsieve {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// [B] -> [blocks, block], the last block filled up with -inf.
at::Tensor in_blocks(const at::Tensor& values, int64_t block) {
  const int64_t missing = (block - values.size(0) % block) % block;
  return at::constant_pad_nd(values, {0, missing}, -kInfinity).reshape({-1, block});
}

}  // namespace

at::Tensor held_out_levels(const at::Tensor& scores, const at::Tensor& below, bool conformal, int64_t min_count) {
  const auto known = at::isnan(scores).logical_not();
  const auto n = known.sum();
  at::Tensor levels;
  if (conformal) {
    // Split conformal prediction: the ceil((n + 1) * below)-th smallest of n calibration scores; none if there are
    // too few.
    const auto sorted = std::get<0>(at::sort(scores.masked_fill(known.logical_not(), kInfinity)));
    const auto k = ((n + 1).to(at::kDouble) * below).ceil().to(at::kLong) - 1;
    levels = sorted.gather(0, k.clamp(0, scores.size(0) - 1)).masked_fill(k >= n, kInfinity);
  } else {
    const auto z = at::special_ndtri(below.to(at::kFloat));
    const auto count = n.to(at::kFloat).clamp_min(1);
    const auto mean = at::nansum(scores) / count;
    const auto variance = at::nansum((scores - mean).square()) / (count - 1).clamp_min(1);
    levels = mean + z * variance.sqrt();
  }
  return levels.to(at::kFloat).masked_fill(n < min_count, kInfinity);
}

at::Tensor training_levels(const at::Tensor& scores, ThresholdKind kind, const at::Tensor& levels, int64_t min_count) {
  at::Tensor result;
  if (kind == ThresholdKind::quantile) {
    result = at::nanquantile(scores, levels);
  } else {
    const auto stats = robust(scores.reshape({1, -1, 1}));
    result = stats.median + levels * stats.scale;
  }
  const auto n = at::isnan(scores).logical_not().sum();
  return result.to(at::kFloat).masked_fill(n < min_count, kInfinity);
}

at::Tensor judge(const at::Tensor& score, const at::Tensor& enough_visits, const at::Tensor& flagged_before,
                 const Levels& levels) {
  const auto verdict = at::where(flagged_before, score > levels.release, score > levels.drop);
  return at::where(enough_visits & at::isnan(score).logical_not(), verdict, flagged_before);
}

at::Tensor weigh(const at::Tensor& score, const at::Tensor& flagged, const Levels& levels, const SieveOptions& options,
                 int64_t block) {
  auto weight = at::ones_like(score);
  auto reduced = flagged;
  if (options.max_fraction < 1) {
    const auto most = static_cast<int64_t>(std::floor(options.max_fraction * static_cast<double>(block)));
    const auto ranked =
        in_blocks(at::where(flagged, at::nan_to_num(score, 0.0), at::full_like(score, -kInfinity)), block);
    const auto order = at::argsort(ranked, /*stable=*/true, /*dim=*/1, /*descending=*/true);
    const auto place = at::empty_like(order).scatter_(1, order, at::arange(block, order.options()).expand_as(order));
    reduced = reduced & (place < most).reshape({-1}).slice(0, 0, score.size(0));
  }
  at::Tensor lowered;
  if (options.action == Action::drop) {
    lowered = at::zeros_like(score);
  } else {
    const auto ratio = (levels.drop / score).nan_to_num(0.0).clamp(0, 1);
    // Evidence at or below zero under a level below zero: the quotient says nothing, so the floor applies.
    lowered = at::where(score > 0, ratio.pow(options.power), at::zeros_like(score)).clamp_min(options.floor);
  }
  return at::where(reduced, lowered, weight);
}

at::Tensor choose_rows(const at::Tensor& priority, int64_t block, int64_t per_block) {
  const auto blocks = in_blocks(priority, block);
  // A stable sort, not topk: among equals the earlier row wins, whatever the number of blocks.
  const auto order = at::argsort(blocks, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const auto chosen = order.slice(1, 0, per_block);
  const auto first = at::arange(blocks.size(0), chosen.options()).unsqueeze(1) * block;
  return (chosen + first).reshape({-1}).clamp_max(priority.size(0) - 1);
}

}  // namespace memsieve
