// How gathered records change the replicated state.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>

#include "engine.h"

namespace memsieve {

namespace {

at::Tensor column(const at::Tensor& lines, int64_t field) {
  return lines.select(1, field);
}
at::Tensor is_set(const at::Tensor& lines, int64_t field) {
  return column(lines, field) > 0;
}
at::Tensor ids_of(const at::Tensor& lines) {
  return column(lines, RecordShape::id).to(at::kLong);
}
at::Tensor sound(const at::Tensor& lines) {
  return is_set(lines, RecordShape::present) & is_set(lines, RecordShape::nonfinite).logical_not();
}

}  // namespace

void Engine::fold_population(const at::Tensor& lines, const at::Tensor& picture, const at::Tensor& valid) {
  const int64_t channels = channel_weight_.size(0);
  const auto bin = bin_of(column(lines, RecordShape::timestep).to(at::kFloat));
  const auto raw =
      lines.slice(1, RecordShape::first_channel, RecordShape::first_channel + channels).to(at::kFloat);
  for (int64_t c = 0; c < channels; ++c) {
    const auto values = raw.select(1, c);
    scores_.fold(bin + c * options_.bins, values.reshape({-1, 1}), valid & at::isnan(values).logical_not());
  }
  if (!options_.reference) return;
  const auto adjusted = lines.slice(1, RecordShape::first_channel + channels).to(at::kFloat);
  const auto z = adjusted + reference_.explained(picture);
  reference_.fold(picture, z, valid & at::isnan(z).logical_not().any(-1));
  reference_.fit();
}

void Engine::fold_evidence(const Gathered& gathered) {
  const int64_t first_z = RecordShape::first_channel + channel_weight_.size(0);
  const auto keys = at::cat({slots(ids_of(gathered.training)), ids_of(gathered.held_out) + slot_count_});
  const auto z =
      at::cat({gathered.training.slice(1, first_z), gathered.held_out.slice(1, first_z)}).to(at::kFloat);
  const auto valid =
      at::cat({sound(gathered.training), sound(gathered.held_out)}) & at::isnan(z).logical_not().any(-1);
  windows_.fold(keys, z, valid);
}

void Engine::fold_verdicts(const at::Tensor& lines) {
  const auto present = is_set(lines, RecordShape::present), probed = is_set(lines, RecordShape::probed);
  const auto slot = slots(ids_of(lines));
  const auto nowhere = at::full_like(slot, slot_count_);
  const auto target = at::where(present, slot, nowhere);
  // Several visits of one slot in a step: the last one in the global order has the say, so that no place is
  // written twice.
  const auto ranks = rank_within_key(target);
  const auto last = present & (ranks.rank == ranks.count - 1);
  flagged_.index_put_({at::where(last, slot, nowhere)}, is_set(lines, RecordShape::flagged));
  unprobed_.index_add_(0, target, at::ones_like(slot, at::kFloat));
  unprobed_.index_fill_(0, at::where(present & probed, slot, nowhere), 0);
  const auto score = column(lines, RecordShape::score).to(at::kFloat);
  training_.fold(at::zeros_like(slot), score.reshape({-1, 1}), sound(lines) & at::isnan(score).logical_not());
}

void Engine::refresh() {
  stats_ = robust(scores_.values());
  switch (options_.threshold) {
    case ThresholdKind::fixed:
      return;
    case ThresholdKind::held_out: {
      const auto e = evidence(windows_.values().slice(0, slot_count_), channel_weight_);
      const auto scores =
          e.score.masked_fill(e.visits < options_.min_visits, std::numeric_limits<double>::quiet_NaN());
      levels_.drop = held_out_level(scores, options_.drop, options_.conformal, options_.min_count);
      levels_.release = held_out_level(scores, options_.release, options_.conformal, options_.min_count);
      return;
    }
    case ThresholdKind::quantile:
    case ThresholdKind::robust_z: {
      const auto scores = training_.values().select(0, 0).select(1, 0);
      levels_.drop = training_level(scores, options_.threshold, options_.drop, options_.min_count);
      levels_.release = training_level(scores, options_.threshold, options_.release, options_.min_count);
      return;
    }
  }
}

void Engine::fold(const Gathered& gathered) {
  const at::NoGradGuard no_grad;
  if (options_.from_held_out) {
    const auto& lines = gathered.held_out;
    fold_population(lines, ids_of(lines).remainder(std::max<int64_t>(1, held_out_size_)) + dataset_size_,
                    sound(lines));
  } else if (options_.standardise == Standardise::timestep) {
    const auto& lines = gathered.training;
    fold_population(lines, ids_of(lines), sound(lines) & is_set(lines, RecordShape::flagged).logical_not());
  }
  fold_evidence(gathered);
  fold_verdicts(gathered.training);
  refresh();
}

void Engine::set_reference(const at::Tensor& picture, const at::Tensor& timestep, const at::Tensor& raw,
                           const at::Tensor& held_out) {
  const auto population = options_.from_held_out ? held_out : held_out.logical_not();
  const auto bin = bin_of(timestep);
  reference_.set(picture, bin, raw, population, options_.bins, options_.clip);
  // These draws are also the first scores that later ones are compared with.
  for (int64_t c = 0; c < raw.size(1); ++c) {
    const auto values = raw.select(1, c);
    scores_.fold(bin + c * options_.bins, values.reshape({-1, 1}),
                 population & at::isnan(values).logical_not());
  }
  refresh();
}

void Engine::restored() {
  refresh();
}

std::vector<std::pair<std::string, at::Tensor*>> Engine::state() {
  return {{"scores", &scores_.buffer},
          {"scores_count", &scores_.count},
          {"windows", &windows_.buffer},
          {"windows_count", &windows_.count},
          {"training", &training_.buffer},
          {"training_count", &training_.count},
          {"flagged", &flagged_},
          {"unprobed", &unprobed_},
          {"easiness", &reference_.easiness},
          {"coefficients", &reference_.coefficients},
          {"recent", &reference_.recent.buffer},
          {"recent_count", &reference_.recent.count}};
}

}  // namespace memsieve
