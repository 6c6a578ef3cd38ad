// How gathered records change the replicated state.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <limits>

#include "judge/engine.h"

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

void Engine::fold_scores(const at::Tensor& timestep, const at::Tensor& raw, const at::Tensor& valid) {
  // Every channel has rings of its own, so all are folded at once.
  const auto values = raw.t();
  const auto first = at::arange(raw.size(1), at::device(device_).dtype(at::kLong)).unsqueeze(1) * options_.bins;
  scores_.fold((bin_of(timestep) + first).reshape({-1}), values.reshape({-1, 1}),
               (valid & at::isnan(values).logical_not()).reshape({-1}));
}

void Engine::fold_population(const at::Tensor& lines, const at::Tensor& picture, const at::Tensor& valid) {
  const int64_t channels = channel_weight_.size(0);
  fold_scores(column(lines, RecordShape::timestep).to(at::kFloat),
              lines.slice(1, RecordShape::first_channel, RecordShape::first_channel + channels).to(at::kFloat), valid);
  if (options_.reference) {
    const auto adjusted = lines.slice(1, RecordShape::first_channel + channels).to(at::kFloat);
    const auto z = adjusted + reference_.explained(picture);
    reference_.fold(picture, z, valid & at::isnan(z).logical_not().any(-1));
    reference_.fit();
  }
  refresh_statistics();
}

void Engine::fold_evidence(const at::Tensor& lines, const at::Tensor& slot) {
  const auto z = lines.slice(1, RecordShape::first_channel + channel_weight_.size(0)).to(at::kFloat);
  windows_.fold(slot, z, sound(lines) & at::isnan(z).logical_not().any(-1));
}

void Engine::fold_probes(const at::Tensor& lines, const at::Tensor& slot) {
  const auto present = is_set(lines, RecordShape::present);
  const auto nowhere = at::full_like(slot, slot_count_ + pseudo_rows_);
  unprobed_.index_add_(0, at::where(present, slot, nowhere), at::ones_like(slot, at::kFloat));
  unprobed_.index_fill_(0, at::where(present & is_set(lines, RecordShape::probed), slot, nowhere), 0);
}

void Engine::fold_verdicts(const at::Tensor& lines, const at::Tensor& slot) {
  const auto present = is_set(lines, RecordShape::present);
  const auto nowhere = at::full_like(slot, slot_count_);
  // Several visits of one slot in a step: the last one in the global order has the say, so that no place is
  // written twice.
  const auto ranks = rank_within_key(at::where(present, slot, nowhere));
  const auto last = present & (ranks.rank == ranks.count - 1);
  flagged_.index_put_({at::where(last, slot, nowhere)}, is_set(lines, RecordShape::flagged));
}

void Engine::fold_training_scores(const at::Tensor& lines) {
  const auto score = column(lines, RecordShape::score).to(at::kFloat);
  training_.fold(at::zeros_like(score, at::kLong), score.reshape({-1, 1}),
                 sound(lines) & at::isnan(score).logical_not());
}

void Engine::refresh_statistics() {
  if (options_.standardise != Standardise::timestep) return;
  const auto stats = robust(scores_.values());
  const auto location =
      stats.median.masked_fill(stats.count < options_.min_count, std::numeric_limits<double>::quiet_NaN());
  location_and_scale_ = at::stack({location, stats.scale.clamp_min(1e-12)}).view({2, -1, options_.bins});
}

void Engine::refresh_levels() {
  at::Tensor both;
  switch (options_.threshold) {
    case ThresholdKind::fixed:
      return;
    case ThresholdKind::held_out: {
      const auto e = evidence(windows_.values().slice(0, slot_count_), channel_weight_);
      const auto scores = e.score.masked_fill(e.visits < options_.min_visits, std::numeric_limits<double>::quiet_NaN());
      both = held_out_levels(scores, wanted_levels_, options_.conformal, options_.min_count);
      break;
    }
    case ThresholdKind::quantile:
    case ThresholdKind::robust_z:
      both = training_levels(training_.values().select(0, 0).select(1, 0), options_.threshold, wanted_levels_,
                             options_.min_count);
  }
  levels_ = {both[0], both[1]};
}

void Engine::fold(const Gathered& gathered, int64_t step) {
  const at::NoGradGuard no_grad;
  const auto &training = gathered.training, &held_out = gathered.held_out;
  const bool observed = observes(step), from_held_out = options_.threshold == ThresholdKind::held_out,
             from_training = options_.threshold_is_relative();
  // Only what some later step reads.
  if (options_.from_held_out) {
    if (observed) fold_population(held_out, picture_of(ids_of(held_out)), sound(held_out));
  } else if (options_.standardise == Standardise::timestep) {
    fold_population(training, ids_of(training), sound(training) & is_set(training, RecordShape::flagged).logical_not());
  }
  const auto slot = slots(ids_of(training));
  const auto lines = observed ? at::cat({training, held_out}) : training;
  const auto all_slots = observed ? at::cat({slot, ids_of(held_out) + slot_count_}) : slot;
  if (options_.ledger_evidence || !options_.probe_every || from_held_out) fold_evidence(lines, all_slots);
  if (!options_.probe_every) fold_probes(lines, all_slots);
  if (options_.ledger_evidence) fold_verdicts(training, slot);
  if (from_training) fold_training_scores(training);
  if (from_training || (from_held_out && observed)) refresh_levels();
}

void Engine::set_reference(const at::Tensor& picture, const at::Tensor& timestep, const at::Tensor& raw,
                           const at::Tensor& held_out) {
  const auto population = options_.from_held_out ? held_out : held_out.logical_not();
  reference_.set(picture, bin_of(timestep), raw, population, options_.bins, options_.clip);
  // These draws are also the first scores that later ones are compared with.
  fold_scores(timestep, raw, population);
  refresh_statistics();
}

void Engine::restored() {
  refresh_statistics();
  refresh_levels();
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
