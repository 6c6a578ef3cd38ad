#include "judge/judge.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "config/read.h"
#include "nan.h"

namespace memsieve {

namespace {
// held-out rows of a rank are few: their probe budget is counted over four at a time
constexpr int64_t kHeldOutBlock = 4;

std::vector<float> weights_of(const std::vector<Channel>& channels) {
  std::vector<float> weights;
  weights.reserve(channels.size());
  for (const auto& channel : channels) weights.push_back(static_cast<float>(channel.weight));
  return weights;
}

/// Rows [B] with anything measured.
at::Tensor any_measured(const at::Tensor& z) {
  return at::isnan(z).logical_not().any(-1);
}

/// Samples that are to find others like them: a group's find each other by what is pooled.
int64_t compared_samples(const JudgeOptions& options, const Setup& setup) {
  if (options.probe.likeness == 0 || options.evidence.pools_groups()) return 0;
  return setup.samples.value_or(setup.dataset_size);
}
}  // namespace

JudgeOptions JudgeOptions::read(const Settings& sieve, const Setup& setup, const std::vector<Channel>& channels) {
  JudgeOptions o;
  o.weights = weights_of(channels);
  o.standardise = StandardiseOptions::read(sieve);
  o.reference = ReferenceOptions::read(sieve);
  o.evidence = EvidenceOptions::read(sieve);
  o.threshold = ThresholdOptions::read(sieve, o.evidence);
  o.action = ActionOptions::read(sieve);
  o.probe = ProbeOptions::read(sieve);
  o.held_out = HeldOutOptions::read(sieve);
  o.revisit = RevisitOptions::read(sieve);
  o.block_rows = sieve.integer("block_rows");
  o.held_out.check(sieve, setup,
                   o.threshold.from_held_out()     ? "threshold.kind"
                   : o.standardise.from_held_out() ? "standardise.population"
                                                   : "");
  o.reference.check(sieve, o.standardise, channels, setup.num_timesteps);
  if (o.block_rows > setup.rows_per_micro_batch) {
    refuse(sieve, "block_rows",
           "is larger than the micro-batch of " + std::to_string(setup.rows_per_micro_batch) + " rows");
  }
  o.standardise.check(sieve, channels);
  o.threshold.check(sieve, o.evidence, o.standardise.min_count);
  if (o.threshold.kind == ThresholdOptions::Kind::rate && !o.standardise.by_timestep())
    refuse(sieve, "threshold.kind", "rate needs z-scores; set standardise.by: timestep");
  if (o.probe.likeness > 0 && !o.evidence.discounts())
    refuse(sieve, "probe.likeness", "needs evidence.kind: discounted");
  o.evidence.check(sieve, setup);
  o.action.check(sieve, o.evidence, o.block_rows > 0 ? o.block_rows : setup.rows_per_micro_batch);
  o.revisit.check(sieve, o.action);
  return o;
}

Judge::Judge(const JudgeOptions& options, const Setup& setup, int64_t ranks)
    : options_(options),
      held_out_size_(setup.held_out_size),
      slots_(setup, options.held_out, options.evidence.pools_groups(), ranks),
      standardise_(options.standardise, static_cast<int64_t>(options.weights.size()), setup.num_timesteps, setup.strata,
                   setup.device),
      reference_(options.reference, setup.dataset_size + setup.held_out_size,
                 static_cast<int64_t>(options.weights.size()), setup.device),
      evidence_(options.evidence, slots_.size(), options.weights, setup.device),
      threshold_(options.threshold, slots_.training(), options.standardise.min_count,
                 options.standardise.from_held_out() ? setup.held_out_size : 0, setup.device),
      probe_(options.probe, slots_.size(), setup.device),
      likeness_(Likeness::Options::of(options.evidence.alike, options.evidence.sums.discount,
                                      compared_samples(options, setup)),
                static_cast<int64_t>(options.weights.size()), setup.device) {
  refresh_levels();
}

std::vector<std::string> Judge::rate_warnings() const {
  const auto& sums = options_.evidence.sums;
  const double level = rate_level(options_.threshold.false_drop_rate, held_out_size_);
  // Of a sample with as many visits as can be, each of the largest z-score in every channel.
  const double lasting = (1 - sums.discount) / (1 + sums.discount) + sums.spread;
  const double most =
      options_.standardise.clip * std::sqrt(static_cast<double>(options_.weights.size()) / std::max(lasting, 1e-12));
  if (level < most) return {};
  char text[200];
  std::snprintf(text, sizeof text,
                "no sample is dropped for what it shows by itself: with %lld held-out pictures the level is %.2f, and "
                "evidence reaches %.2f at most; hold out more pictures",
                static_cast<long long>(held_out_size_), level, most);
  return {text};
}

std::vector<std::string> Judge::warnings() const {
  const int64_t rows = pseudo_rows(), min_count = options_.standardise.min_count;
  if (options_.threshold.kind == ThresholdOptions::Kind::rate && options_.standardise.from_held_out())
    return rate_warnings();
  if (!options_.threshold.from_held_out()) return {};
  const std::string have = "nothing will be dropped: the threshold rests on " + std::to_string(rows) +
                           " held-out rows (" + std::to_string(held_out_size_) + " pictures), ";
  if (rows < min_count) {
    return {have + "fewer than standardise.min_count: " + std::to_string(min_count) +
            "; hold out more pictures, or lower min_count"};
  }
  const bool conformal = options_.threshold.tail == ThresholdOptions::Tail::conformal;
  const double place = std::ceil(static_cast<double>(rows + 1) * (1 - options_.threshold.drop));
  if (conformal && place > static_cast<double>(rows)) {
    return {have +
            "too few for `tail: conformal` at the rate of threshold.drop; hold out more pictures, or use `tail: "
            "normal`"};
  }
  return {};
}

Past Judge::recall_slots(const at::Tensor& ids, bool held_out) const {
  const auto slot = slots_.of(ids, held_out);
  return {held_out,
          slot,
          slots_.picture(ids, held_out),
          held_out ? at::zeros_like(ids, at::kBool) : threshold_.flagged(slot),
          evidence_.recall(slot),
          {},
          {}};
}

Past Judge::recall_held_out(const at::Tensor& ids) const {
  return recall_slots(ids, true);
}

Past Judge::recall(const at::Tensor& ids, const at::Tensor& likeness) const {
  Past past = recall_slots(ids, false);
  if (options_.probe.likeness == 0) return past;
  past.likeness =
      likeness.defined() ? likeness : at::full({ids.size(0), kLikenessWidth}, kNaN, ids.options().dtype(at::kFloat));
  past.neighbours = likeness_.of(past.likeness, ids, past.slot);
  return past;
}

Past Judge::recall_look(const at::Tensor& ids, const at::Tensor& likeness) const {
  Past past = recall(ids, likeness);
  past.look = true;
  return past;
}

at::Tensor Judge::adjusted(const RawScores& scores, const at::Tensor& picture) const {
  return reference_.apply(standardise_.apply(scores), picture);
}

bool Judge::probes_all(bool held_out) const {
  // With `discounted` what a visit shows has no part in the choice, so held-out rows need not be chosen.
  return options_.probe.every() || (held_out && options_.evidence.discounts());
}

int64_t Judge::probe_count(int64_t rows, bool held_out, int64_t step) const {
  if (!held_out && !options_.probe.probes(step)) return 0;
  if (probes_all(held_out)) return rows;
  return probe_.count(rows, held_out ? kHeldOutBlock : block(rows));
}

at::Tensor Judge::rows_to_probe(const Past& past, const RawScores& free, const at::Tensor& eligible,
                                int64_t step) const {
  const int64_t rows = free.timestep.size(0);
  if (past.look) return at::arange(rows, past.slot.options());
  if (probe_count(rows, past.held_out, step) == 0) return at::empty({0}, past.slot.options());
  if (probes_all(past.held_out)) return at::arange(rows, past.slot.options());
  if (options_.evidence.discounts()) {
    const auto none = at::zeros_like(eligible);
    const auto known = evidence_.with_visit(past.evidence, at::full_like(free.raw, kNaN), none, past.neighbours);
    return probe_.choose_by_past(past.slot, known.score, past.neighbours.alike, past.flagged, threshold_.levels().drop,
                                 eligible, block(rows));
  }
  const auto z = adjusted(free, past.picture);
  const auto now = evidence_.with_visit(past.evidence, z, any_measured(z));
  return probe_.choose(past.slot, now.score, eligible, past.held_out ? kHeldOutBlock : block(rows));
}

Verdicts Judge::judge(const Past& past, const RawScores& s, int64_t step) const {
  Verdicts v;
  v.z = adjusted(s, past.picture);
  const auto measured = any_measured(v.z) & s.nonfinite.logical_not();
  const auto now = evidence_.with_visit(past.evidence, v.z, measured, past.neighbours);
  const bool compared = past.neighbours.enough.defined();
  v.alike = compared ? past.neighbours.alike : at::zeros_like(s.timestep);
  v.together = compared ? past.neighbours.enough : at::zeros_like(s.captioned);
  // A single visit has no past to fall back on.
  v.score = options_.evidence.remembers() ? now.score : now.score.masked_fill(measured.logical_not(), kNaN);
  if (s.exempt.defined()) v.score = v.score.masked_fill(s.exempt, kNaN);
  const auto& levels = threshold_.levels();
  v.level = levels.drop.expand_as(s.timestep);
  v.flagged = at::zeros_like(s.captioned);
  v.weight = at::ones_like(s.timestep);
  if (past.held_out) {
    v.weight = at::zeros_like(v.weight);
    return v;
  }
  const auto before = options_.evidence.remembers() ? past.flagged : v.flagged;
  v.flagged = verdict(v.score, now.visits >= options_.evidence.min_visits, before, levels);
  if (s.exempt.defined()) v.flagged = v.flagged & s.exempt.logical_not();
  if (past.look)
    v.weight = at::zeros_like(v.weight);
  else if (step >= options_.action.warmup_steps)
    v.weight = weigh(v.score, v.flagged, levels, options_.action, block(s.timestep.size(0)));
  return v;
}

at::Tensor Judge::population_of(const LineView& training) const {
  // Rows with copies are probed before others, whatever they have shown. Flagged ones stay where the level is of the
  // others' own making: without them the rest would seem narrower, and more and more would be flagged.
  if (options_.evidence.discounts()) return training.sound() & (training.alike() == 0);
  return training.sound() & training.flagged().logical_not();
}

void Judge::fold_population(const LineView& line, const at::Tensor& picture, const at::Tensor& valid) {
  const auto stratum = standardise_.strata() > 1 ? line.stratum() : at::Tensor();
  standardise_.fold(standardise_.cell_of(line.timestep(), stratum), line.raw(), valid);
  reference_.fold(picture, line.z(), valid);
  standardise_.refresh();
}

void Judge::fold(const Gathered& gathered, int64_t step) {
  const at::NoGradGuard no_grad;
  const LineView training(gathered.training, gathered.shape), held_out(gathered.held_out, gathered.shape);
  const bool observed = options_.held_out.observes(step), from_held_out = options_.threshold.from_held_out(),
             from_training = options_.threshold.from_training();
  // Only what some later step reads.
  if (options_.standardise.from_held_out()) {
    if (observed) fold_population(held_out, slots_.picture(held_out.id(), true), held_out.sound());
  } else if (options_.standardise.by_timestep()) {
    fold_population(training, training.id(), population_of(training));
  } else if (options_.standardise.by_running_mean()) {
    fold_population(training, training.id(), training.sound());
  }
  // Looks tell of training samples, but no population or level comes from them.
  const bool looked = options_.revisit.looks(step);
  const LineView visits(looked ? at::cat({gathered.training, gathered.looks}) : gathered.training, gathered.shape);
  const auto slot = slots_.of(visits.id(), false);
  const LineView all(observed ? at::cat({visits.lines(), gathered.held_out}) : visits.lines(), gathered.shape);
  const auto all_slots = observed ? at::cat({slot, slots_.of(held_out.id(), true)}) : slot;
  if (options_.evidence.remembers() || !options_.probe.every() || from_held_out)
    evidence_.fold(all_slots, all.z(), all.sound());
  if (!options_.probe.every()) probe_.fold(all_slots, all.counted(), all.probed());
  if (options_.evidence.remembers()) threshold_.fold_verdicts(slot, visits.flagged(), visits.counted());
  if (from_training) threshold_.fold_training(training.score(), training.sound());
  if (options_.evidence.discounts()) fold_discounted(training, visits, observed);
  // Last: the levels rest on what was folded above, the held-out rows' precision and width among it.
  if (from_training || (from_held_out && observed)) refresh_levels();
}

void Judge::fold_discounted(const LineView& training, const LineView& visits, bool observed) {
  evidence_.fold_bulk(slots_.of(training.id(), false), population_of(training) & training.flagged().logical_not(),
                      threshold_.flagged_share(slots_.used()));
  if (observed) evidence_.refresh_precision(slots_.training(), options_.standardise.min_count);
  if (options_.probe.likeness == 0) return;
  likeness_.fold_seen(training.likeness(), training.id(), training.sound());
  likeness_.fold_measured(visits.likeness(), visits.id(), slots_.of(visits.id(), false), visits.z(), visits.sound());
}

void Judge::set_reference(const at::Tensor& picture, const RawScores& scores, const at::Tensor& held_out) {
  const auto population = options_.standardise.from_held_out() ? held_out : held_out.logical_not();
  const auto cell = standardise_.cell_of(scores.timestep, scores.stratum);
  reference_.set(picture, cell, scores.raw, population, standardise_.cells(), options_.standardise.clip);
  // These draws are also the first scores that later ones are compared with.
  standardise_.fold(cell, scores.raw, population);
  standardise_.refresh();
}

void Judge::refresh_levels() {
  threshold_.refresh(options_.threshold.from_held_out() ? evidence_.of_slots_from(slots_.training()) : at::Tensor());
}

void Judge::restored() {
  standardise_.refresh();
  refresh_levels();
}

State Judge::state() {
  State all;
  for (const State& part :
       {standardise_.state(), evidence_.state(), threshold_.state(), probe_.state(), reference_.state()})
    all.insert(all.end(), part.begin(), part.end());
  if (options_.probe.likeness > 0) {
    const State part = likeness_.state();
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace memsieve
