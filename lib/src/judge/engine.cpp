#include "judge/engine.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "full_precision.h"
#include "to_device.h"

namespace memsieve {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
// held-out rows of a rank are few: their probe budget is counted over four at a time
constexpr int64_t kHeldOutBlock = 4;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<int64_t> dense_groups(const std::vector<int64_t>& group_id, int64_t& count) {
  std::map<int64_t, int64_t> dense;
  std::vector<int64_t> slots;
  slots.reserve(group_id.size());
  for (int64_t group : group_id)
    slots.push_back(dense.try_emplace(group, static_cast<int64_t>(dense.size())).first->second);
  count = static_cast<int64_t>(dense.size());
  return slots;
}

}  // namespace

Engine::Engine(const SieveOptions& options, const Setup& setup, int64_t ranks)
    : options_(options),
      device_(setup.device),
      dataset_size_(setup.dataset_size),
      held_out_size_(setup.held_out_size),
      num_timesteps_(setup.num_timesteps),
      slot_count_(setup.dataset_size) {
  const auto real = at::device(device_).dtype(at::kFloat);
  const auto channels = static_cast<int64_t>(options.channels.size());
  if (options.pool_groups) slot_of_ = at::tensor(dense_groups(setup.group_id, slot_count_), at::kLong).to(device_);
  if (options.held_out_rows > 0) {
    // As many pseudo-rows as make each one visited about as often as a training row, so that their evidence spans the
    // same stretch of training.
    const double visits_per_epoch =
        static_cast<double>(options.held_out_rows * setup.dataset_size) /
        static_cast<double>(setup.rows_per_micro_batch * setup.micro_batches * ranks * options.held_out_every);
    const auto copies = std::llround(visits_per_epoch / static_cast<double>(held_out_size_));
    pseudo_rows_ = std::max<int64_t>(1, copies) * held_out_size_;
  }
  std::vector<float> weights;
  for (const auto& channel : options.channels) weights.push_back(static_cast<float>(channel.weight));
  channel_weight_ = at::tensor(weights, at::kFloat).to(device_);
  scores_ = Rings(channels * options.bins, options.window, 1, device_);
  windows_ = Rings(slot_count_ + pseudo_rows_, options.visits, channels, device_);
  training_ = Rings(1, options.threshold_is_relative() ? options.threshold_window : 1, 1, device_);
  flagged_ = at::zeros({slot_count_ + 1}, real.dtype(at::kBool));
  unprobed_ = at::zeros({slot_count_ + pseudo_rows_ + 1}, real);
  reference_ = Reference(options.reference ? dataset_size_ + held_out_size_ : 1, channels, device_);
  const bool fixed = options.threshold == ThresholdKind::fixed, rates = options.threshold == ThresholdKind::held_out;
  levels_ = {at::full({}, fixed ? options.drop : kInfinity, real),
             at::full({}, fixed ? options.release : kInfinity, real)};
  wanted_levels_ = (rates ? at::tensor({1 - options.drop, 1 - options.release}, at::kDouble)
                          : at::tensor({options.drop, options.release}, at::kFloat))
                       .to(device_);
  refresh_statistics();
  refresh_levels();
}

std::vector<std::string> Engine::warnings() const {
  std::vector<std::string> lines;
  if (options_.threshold != ThresholdKind::held_out) return lines;
  const std::string have = "nothing will be dropped: the threshold rests on " + std::to_string(pseudo_rows_) +
                           " held-out rows (" + std::to_string(held_out_size_) + " pictures), ";
  if (pseudo_rows_ < options_.min_count) {
    lines.push_back(have + "fewer than standardise.min_count: " + std::to_string(options_.min_count) +
                    "; hold out more pictures, or lower min_count");
  } else if (options_.conformal && std::ceil(static_cast<double>(pseudo_rows_ + 1) * (1 - options_.drop)) >
                                       static_cast<double>(pseudo_rows_)) {
    lines.push_back(
        have +
        "too few for `tail: conformal` at the rate of threshold.drop; hold out more pictures, or use `tail: normal`");
  }
  return lines;
}

at::Tensor Engine::bin_of(const at::Tensor& timestep) const {
  const auto scaled = timestep * (static_cast<double>(options_.bins) / static_cast<double>(num_timesteps_));
  return scaled.floor().to(at::kLong).clamp(0, options_.bins - 1);
}

int64_t Engine::block(int64_t rows) const {
  return options_.block_rows > 0 ? options_.block_rows : rows;
}

at::Tensor Engine::slots(const at::Tensor& ids) const {
  return slot_of_.defined() ? slot_of_.index_select(0, ids) : ids;
}

at::Tensor Engine::picture_of(const at::Tensor& pseudo_rows) const {
  return pseudo_rows.remainder(std::max<int64_t>(1, held_out_size_)) + dataset_size_;
}

Engine::Prior Engine::prior(const at::Tensor& ids, bool held_out) const {
  Prior p;
  p.held_out = held_out;
  p.slot = held_out ? ids + slot_count_ : slots(ids);
  p.picture = held_out ? picture_of(ids) : ids;
  p.windows = windows_.buffer.index_select(0, p.slot);
  p.counts = windows_.count.index_select(0, p.slot);
  p.flagged = held_out ? at::zeros_like(ids, at::kBool) : flagged_.index_select(0, p.slot);
  return p;
}

void Engine::score_channels(const SignalView& view, bool with_magnitude, RawScores& scores) const {
  const FullPrecision full_precision;
  for (size_t c = 0; c < options_.channels.size(); ++c) {
    const auto& channel = options_.channels[c];
    if (channel.needs.magnitude != with_magnitude) continue;
    at::Tensor score;
    try {
      score = channel.filter->score(view);
    } catch (const std::exception& error) {
      throw Error("filter " + channel.name + ": " + one_line(error));
    }
    if (!score.defined() || score.sizes() != view.timestep.sizes()) {
      throw Error("filter " + channel.name + ": score must have shape [" + std::to_string(view.timestep.size(0)) + "]");
    }
    const auto valid = scores.captioned & (view.timestep >= channel.needs.timestep_min);
    scores.raw.select(1, static_cast<int64_t>(c)).copy_(score.masked_fill(valid.logical_not(), kNaN));
  }
}

at::Tensor Engine::rows_to_probe(const RawScores& scores, const Prior* prior) const {
  const int64_t rows = scores.timestep.size(0);
  const auto eligible = scores.captioned & (scores.timestep >= options_.magnitude_timestep_min());
  // Before training the host may wait, and a row without a signal need not be paid for.
  if (prior == nullptr) return at::nonzero(eligible).squeeze(1);
  const Prior& p = *prior;
  if (options_.probe_every) return at::arange(rows, p.slot.options());
  const auto z = adjusted(scores, p.picture);
  const auto measured = at::isnan(z).logical_not().any(-1);
  const auto now = evidence(with_current(p.windows, p.counts, z, measured), channel_weight_);
  const auto age = unprobed_.index_select(0, p.slot);
  const auto priority = at::nan_to_num(now.score, 0.0) + age + eligible.to(at::kFloat) * 1e4;
  const int64_t size = p.held_out ? kHeldOutBlock : block(rows);
  const auto per_block = static_cast<int64_t>(std::ceil(options_.probe_fraction * static_cast<double>(size)));
  return choose_rows(priority, size, std::clamp<int64_t>(per_block, 1, size));
}

void Engine::probe(const Batch& batch, const at::Tensor& prediction, const at::Tensor& chosen, SignalView& view,
                   RawScores& s) const {
  const auto null = batch.null_prediction(chosen).detach().to(at::kFloat);
  const auto with_caption = prediction.index_select(0, chosen);
  if (null.sizes() != with_caption.sizes()) throw DataError("null_prediction returned another shape than prediction's");
  const auto norm = (with_caption - null).flatten(1).norm(2, {1});
  view.magnitude = view.magnitude.index_copy(0, chosen, norm);
  s.probed = s.probed.index_fill(0, chosen, true);
  s.nonfinite = s.nonfinite | (s.probed & at::isfinite(view.magnitude).logical_not());
  s.probed = s.probed & s.captioned & (s.timestep >= options_.magnitude_timestep_min());
  score_channels(view, true, s);
}

RawScores Engine::raw_scores(const Batch& batch, const Prior* prior) const {
  const auto prediction = batch.prediction.detach().to(at::kFloat);
  const auto target = batch.target.detach().to(at::kFloat);
  const int64_t rows = prediction.size(0);
  RawScores s;
  s.elements = prediction[0].numel();
  s.timestep = to_device(batch.timestep.detach(), device_).to(at::kFloat);
  s.captioned = batch.has_caption.defined() ? to_device(batch.has_caption, device_).to(at::kBool)
                                            : at::ones_like(s.timestep, at::kBool);
  s.raw = at::full({rows, static_cast<int64_t>(options_.channels.size())}, kNaN, s.timestep.options());
  s.probed = at::zeros_like(s.captioned);
  SignalView view{s.timestep, (prediction - target).square().flatten(1).mean(1), at::full_like(s.timestep, kNaN),
                  s.elements};
  s.nonfinite = at::isfinite(view.prediction_error).logical_not();
  score_channels(view, false, s);
  if (options_.needs_magnitude()) {
    if (!batch.null_prediction) throw DataError("null_prediction is empty, but a filter needs the magnitude");
    const auto chosen = rows_to_probe(s, prior);
    if (chosen.size(0) > 0) probe(batch, prediction, chosen, view, s);
  }
  s.nonfinite = s.nonfinite | at::isinf(s.raw).any(1);
  return s;
}

at::Tensor Engine::standardise(const RawScores& scores) const {
  if (options_.standardise == Standardise::none) return scores.raw;
  if (options_.standardise == Standardise::rms) return scores.raw / std::sqrt(static_cast<double>(scores.elements));
  const auto here = location_and_scale_.index_select(2, bin_of(scores.timestep));
  const auto z = (scores.raw - here[0].t()) / here[1].t();
  return z.clamp(-options_.clip, options_.clip);
}

at::Tensor Engine::adjusted(const RawScores& scores, const at::Tensor& picture) const {
  const auto z = standardise(scores);
  return options_.reference ? z - reference_.explained(picture) : z;
}

Measured Engine::measure(const Batch& batch, const at::Tensor& ids, bool held_out, int64_t step) const {
  const at::NoGradGuard no_grad;
  const Prior p = prior(ids, held_out);
  const RawScores s = raw_scores(batch, &p);
  const at::Tensor z = adjusted(s, p.picture);
  const auto measured = at::isnan(z).logical_not().any(-1) & s.nonfinite.logical_not();
  const auto now = evidence(with_current(p.windows, p.counts, z, measured), channel_weight_);
  // A single visit has no past to fall back on.
  const auto score = options_.ledger_evidence ? now.score : now.score.masked_fill(measured.logical_not(), kNaN);
  at::Tensor flagged = at::zeros_like(s.captioned), weight = at::ones_like(s.timestep);
  if (held_out) {
    weight = at::zeros_like(weight);
  } else {
    const auto before = options_.ledger_evidence ? p.flagged : flagged;
    flagged = judge(score, now.visits >= options_.min_visits, before, levels_);
    if (step >= options_.warmup_steps) weight = weigh(score, flagged, levels_, options_, block(ids.size(0)));
  }
  const auto column = [](const at::Tensor& t) { return t.to(at::kDouble).unsqueeze(1); };
  const auto lines =
      at::cat({column(at::ones_like(weight)), column(ids), column(s.timestep), column(s.captioned), column(s.probed),
               column(flagged), column(weight), column(score), column(levels_.drop.expand_as(weight)),
               column(s.nonfinite), s.raw.to(at::kDouble), z.to(at::kDouble)},
              1);
  return {lines, weight};
}

RawScores Engine::score_all(const Batch& batch) const {
  const at::NoGradGuard no_grad;
  return raw_scores(batch, nullptr);
}

}  // namespace memsieve
