#include "judge/threshold.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "config/read.h"

namespace memsieve {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kHuge = 1e38;  // levels are float32
const Names kThresholdKinds{"fixed", "quantile", "robust_z", "held_out", "rate"};
const Names kTails{"normal", "conformal"};

}  // namespace

Schema ThresholdOptions::schema() {
  const ThresholdOptions d;
  Schema s;
  s.choice(
       "kind", name_of(kThresholdKinds, d.kind), kThresholdKinds,
       "`fixed`: a level of the score; `quantile`: of the last scores of training rows; `robust_z`: median + level "
       "· 1.4826 · MAD of them; `held_out`: the level that held-out rows exceed with the given probability; `rate`: "
       "the level that ordinary rows' evidence, which `evidence.kind: discounted` makes standard normal, exceeds with "
       "the probability false_drop_rate")
      .real("false_drop_rate", d.false_drop_rate, 1e-9, 0.5,
            "share of the visits of ordinary rows that may be dropped (`rate`)")
      .real("drop", d.drop, -kHuge, kHuge,
            "level beyond which a sample is judged memorised: the score (`fixed`), a quantile in (0, 1) (`quantile`), "
            "a z-score (`robust_z`), a false-drop rate in (0, 1) (`held_out`); refused with `rate`, which has "
            "false_drop_rate")
      .real(
          "release", d.release, -kHuge, kHuge,
          "level below which such a sample is released again, in the same unit; only where evidence has a past (`ledger`, "
          "`discounted`), and then required with `fixed`, `quantile` and `robust_z`; refused with `rate`, which releases "
          "at the level itself")
      .integer("window", d.window, 10, 10000000, "training scores remembered by `quantile` and `robust_z`")
      .choice("tail", name_of(kTails, d.tail), kTails,
              "how `held_out` turns a rate into a level: mean + z · sd of the held-out evidence, or the "
              "split-conformal order statistic (finite-sample guarantee over held-out rows; over pictures where each "
              "has one row; needs at least 1/rate held-out rows)");
  return s;
}

ThresholdOptions ThresholdOptions::read(const Settings& sieve, const EvidenceOptions& evidence) {
  ThresholdOptions o;
  o.kind = read_choice<Kind>(sieve, "threshold.kind", kThresholdKinds);
  o.drop = sieve.real("threshold.drop");
  o.release = evidence.remembers() ? sieve.real("threshold.release") : o.drop;
  o.false_drop_rate = sieve.real("threshold.false_drop_rate");
  o.window = sieve.integer("threshold.window");
  o.tail = read_choice<Tail>(sieve, "threshold.tail", kTails);
  return o;
}

void ThresholdOptions::check(const Settings& sieve, const EvidenceOptions& evidence, int64_t min_count) const {
  if (kind == Kind::rate) {
    if (!evidence.discounts())
      refuse(sieve, "threshold.kind", "rate needs evidence.kind: discounted, whose scores are standard normal");
    for (const std::string key : {"threshold.drop", "threshold.release"}) {
      if (sieve.has(key)) refuse(sieve, key, "is not used by `kind: rate`; set threshold.false_drop_rate");
    }
    return;
  }
  const bool rate = from_held_out();
  for (const std::string key : {"threshold.drop", "threshold.release"}) {
    if (key == "threshold.release" && !evidence.remembers()) continue;
    const double level = sieve.real(key);
    if ((rate || kind == Kind::quantile) && (level <= 0 || level >= 1))
      refuse(sieve, key, "with `kind: " + name_of(kThresholdKinds, kind) + "` the level is a probability in (0, 1)");
  }
  if (from_training()) check_at_most(sieve, "standardise.min_count", min_count, "threshold.window", window);
  if (!evidence.remembers()) {
    if (sieve.has("threshold.release"))
      refuse(sieve, "threshold.release", "needs `evidence.kind: ledger` or `discounted`; a single visit has no past");
    return;
  }
  // In the unit of these kinds the default, a rate, would hardly ever release anything.
  if (!rate && !sieve.has("threshold.release")) {
    refuse(sieve, "threshold.kind",
           name_of(kThresholdKinds, kind) +
               " with evidence that has a past needs threshold.release in the same unit as threshold.drop (the same "
               "value: released as soon as it falls below that)");
  }
  // A rate falls as the level of evidence rises; all other kinds rise with it.
  if (rate ? release < drop : release > drop) {
    refuse(sieve, "threshold.release",
           "asks for more evidence than threshold.drop; it must be the more lenient of the two");
  }
}

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

at::Tensor training_levels(const at::Tensor& scores, ThresholdOptions::Kind kind, const at::Tensor& levels,
                           int64_t min_count) {
  at::Tensor result;
  if (kind == ThresholdOptions::Kind::quantile) {
    result = at::nanquantile(scores, levels);
  } else {
    const auto stats = robust(scores.reshape({1, -1, 1}));
    result = stats.median + levels * stats.scale;
  }
  const auto n = at::isnan(scores).logical_not().sum();
  return result.to(at::kFloat).masked_fill(n < min_count, kInfinity);
}

double rate_level(double rate, int64_t pictures) {
  const double z = at::special_ndtri(at::full({}, 1 - rate, at::kDouble)).item<double>();
  if (pictures == 0) return z;
  const auto n = static_cast<double>(std::max<int64_t>(pictures, 2)), v = n - 1;
  const double z3 = z * z * z, z5 = z3 * z * z, z7 = z5 * z * z, z9 = z7 * z * z;
  const double t = z + (z3 + z) / (4 * v) + (5 * z5 + 16 * z3 + 3 * z) / (96 * v * v) +
                   (3 * z7 + 19 * z5 + 17 * z3 - 15 * z) / (384 * v * v * v) +
                   (79 * z9 + 776 * z7 + 1482 * z5 - 1920 * z3 - 945 * z) / (92160 * v * v * v * v);
  return t * std::sqrt(1 + 1 / n);
}

at::Tensor verdict(const at::Tensor& score, const at::Tensor& enough_visits, const at::Tensor& flagged_before,
                   const Levels& levels) {
  const auto beyond = at::where(flagged_before, score > levels.release, score > levels.drop);
  return at::where(enough_visits & at::isnan(score).logical_not(), beyond, flagged_before);
}

Threshold::Threshold(const ThresholdOptions& options, int64_t slots, int64_t min_count, int64_t pictures,
                     at::Device device)
    : options_(options),
      slots_(slots),
      min_count_(min_count),
      flagged_(at::zeros({slots + 1}, at::device(device).dtype(at::kBool))),
      training_(1, options.from_training() ? options.window : 1, 1, device) {
  const auto real = at::device(device).dtype(at::kFloat);
  const bool fixed = options.kind == ThresholdOptions::Kind::fixed;
  levels_ = {at::full({}, fixed ? options.drop : kInfinity, real),
             at::full({}, fixed ? options.release : kInfinity, real)};
  if (options.kind == ThresholdOptions::Kind::rate) {
    const auto level = at::full({}, rate_level(options.false_drop_rate, pictures), real);
    levels_ = {level, level};
  }
  wanted_ = (options.from_held_out() ? at::tensor({1 - options.drop, 1 - options.release}, at::kDouble)
                                     : at::tensor({options.drop, options.release}, at::kFloat))
                .to(device);
}

at::Tensor Threshold::flagged_share(int64_t used) const {
  return flagged_.slice(0, 0, slots_).to(at::kFloat).mean() * (static_cast<double>(slots_) / static_cast<double>(used));
}

void Threshold::fold_verdicts(const at::Tensor& slot, const at::Tensor& flagged, const at::Tensor& counted) {
  const auto nowhere = at::full_like(slot, slots_);
  // Several visits of one slot in a step: the last one in the global order has the say, so that no place is
  // written twice.
  const auto ranks = rank_within_key(at::where(counted, slot, nowhere));
  const auto last = counted & (ranks.rank == ranks.count - 1);
  flagged_.index_put_({at::where(last, slot, nowhere)}, flagged);
}

void Threshold::fold_training(const at::Tensor& score, const at::Tensor& valid) {
  training_.fold(at::zeros_like(score, at::kLong), score.reshape({-1, 1}), valid & at::isnan(score).logical_not());
}

void Threshold::refresh(const at::Tensor& held_out) {
  at::Tensor both;
  if (options_.from_held_out()) {
    both = held_out_levels(held_out, wanted_, options_.tail == ThresholdOptions::Tail::conformal, min_count_);
  } else if (options_.from_training()) {
    both = training_levels(training_.values().select(0, 0).select(1, 0), options_.kind, wanted_, min_count_);
  } else {
    return;
  }
  levels_ = {both[0], both[1]};
}

State Threshold::state() {
  return {{"training", &training_.buffer}, {"training_count", &training_.count}, {"flagged", &flagged_}};
}

}  // namespace memsieve
