#include "config/options.h"

#include <memsieve/error.h>

#include <algorithm>

namespace memsieve {

bool SieveOptions::needs_magnitude() const {
  return std::any_of(channels.begin(), channels.end(), [](const Channel& c) { return c.needs.magnitude; });
}

double SieveOptions::magnitude_timestep_min() const {
  double low = 1e300;
  for (const auto& channel : channels) {
    if (channel.needs.magnitude) low = std::min(low, channel.needs.timestep_min);
  }
  return low;
}

namespace {

constexpr double kHuge = 1e300;

Schema standardise_schema() {
  Schema s;
  s.choice("by", "timestep", {"none", "rms", "timestep"},
           "`none`: the filter's score as it is (the published raw L2); `rms`: divided by sqrt(C·H·W); `timestep`: "
           "robust z-score, (x − median) / (1.4826 · MAD), within the score's timestep bin")
      .choice("population", "held_out", {"training", "held_out"},
              "whose recent scores the z-scores are taken against: training rows that were not judged memorised, or "
              "rows that are never trained on")
      .integer("bins", 10, 1, 1000, "timestep bins of equal width")
      .integer("window", 100, 4, 1000000, "scores remembered in each bin")
      .integer("min_count", 20, 2, 1000000,
               "a bin with fewer scores gives no z-score yet; nor is there a threshold from fewer (`quantile`, "
               "`robust_z`: recent scores; `held_out`: held-out rows with evidence)")
      .real("clip", 4, 0.1, kHuge, "z-scores are clipped to ± this");
  return s;
}

Schema threshold_schema() {
  Schema s;
  s.choice("kind", "held_out", {"fixed", "quantile", "robust_z", "held_out"},
           "`fixed`: a level of the score; `quantile`: of the last scores of training rows; `robust_z`: median + level "
           "· 1.4826 · MAD of them; `held_out`: the level that held-out rows exceed with the given probability")
      .real("drop", 0.01, -kHuge, kHuge,
            "level beyond which a sample is judged memorised: the score (`fixed`), a quantile in (0, 1) (`quantile`), "
            "a z-score (`robust_z`), a false-drop rate in (0, 1) (`held_out`)")
      .real("release", 0.2, -kHuge, kHuge,
            "level below which such a sample is released again, in the same unit; only with `evidence.kind: ledger`; "
            "to be given with every kind but `held_out`")
      .integer("window", 1000, 10, 10000000, "training scores remembered by `quantile` and `robust_z`")
      .choice("tail", "normal", {"normal", "conformal"},
              "how `held_out` turns a rate into a level: mean + z · sd of the held-out evidence, or the "
              "split-conformal order statistic (finite-sample guarantee over held-out rows; over pictures where each "
              "has one row; needs at least 1/rate held-out rows)");
  return s;
}

Schema action_schema() {
  Schema s;
  s.choice("kind", "drop", {"drop", "downweight"},
           "`drop`: weight 0; `downweight`: max(floor, min(1, (level/score)^power))")
      .real("power", 2, 0, 100, "exponent of `downweight`")
      .real("floor", 0, 0, 1, "smallest weight of `downweight`")
      .integer("warmup_steps", 0, 0, INT64_MAX / 2,
               "steps in which everything is measured and judged, and nothing dropped")
      .real("max_fraction", 1, 0, 1, "at most this fraction of each block of rows is dropped, highest scores first");
  return s;
}

Schema evidence_schema() {
  Schema s;
  s.choice("kind", "ledger", {"visit", "ledger"},
           "`visit`: judge by this visit alone, as published; `ledger`: by what the sample's last visits have shown")
      .integer("visits", 8, 1, 1000, "visits remembered for each sample (`ledger`)")
      .integer("min_visits", 2, 1, 1000, "no verdict before this many measured visits (`ledger`)")
      .choice("pool", "sample", {"sample", "group"},
              "`group`: samples with the same group id share their evidence (`ledger`)");
  return s;
}

}  // namespace

Schema sieve_schema(const FilterRegistry& filters) {
  Schema named;
  for (const auto& entry : filters.entries()) {
    Schema keys = entry.options;
    keys.real("weight", 1, 0, 1e6, "factor of this filter's evidence in the sum over filters");
    named.optional_section(entry.name, keys, entry.doc);
  }
  Schema reference, probe, held_out, ledger, sieve;
  reference
      .choice("kind", "none", {"none", "start_model"},
              "`start_model`: subtract what the model at the start of fine-tuning already found easy about a sample")
      .integer("draws", 5, 1, 1000,
               "noise draws of each picture under the starting model, spread evenly over the timesteps");
  probe
      .choice("kind", "every", {"every", "budget"},
              "rows whose magnitude is measured: all (as published), or a fixed number, spent on rows with a "
              "suspicious loss or past and on rows not probed for long")
      .real("fraction", 0.25, 0, 1, "share of each block that `budget` probes, rounded up");
  held_out
      .integer("rows", 0, 0, 1000000,
               "held-out rows observed in each optimiser step, over all ranks; a multiple of 4 times the ranks makes "
               "decisions independent of their number")
      .integer("every", 1, 1, 1000000,
               "optimiser steps from one observation to the next; larger = cheaper, but the threshold follows the "
               "model more slowly");
  ledger.integer("flush_every", 50, 1, INT64_MAX / 2, "optimiser steps between writes of the ledger to disk");
  sieve.texts("plugins", {}, "shared objects with further filters; their names and options join `filters`")
      .section("filters", named, "filters in use; the evidence of several is added")
      .section("standardise", standardise_schema(), "how scores at different timesteps are made comparable")
      .section("reference", reference, "what counts as easy rather than memorised")
      .section("evidence", evidence_schema(), "what a verdict rests on")
      .section("threshold", threshold_schema(), "when the evidence is too much")
      .section("action", action_schema(), "what happens to a memorised sample")
      .section("probe", probe, "where the additional forward passes are spent")
      .integer("block_rows", 0, 0, 1000000,
               "probe budget and drop cap hold for each block of this many consecutive rows; a divisor of the "
               "micro-batch makes decisions independent of the number of ranks; 0 = the whole micro-batch")
      .section("held_out", held_out, "rows that are scored but never trained on")
      .section("ledger", ledger, "the record of all visits")
      .choice("on_nonfinite", "fail", {"fail", "skip"},
              "a NaN or Inf in a signal or a loss: stop all ranks naming the sample, or skip the update and count it");
  return sieve;
}

namespace {

[[noreturn]] void refuse(const Settings& s, const std::string& key, const std::string& what) {
  throw ConfigError(s.where(key) + ": " + what);
}

void check_levels(const Settings& s, const SieveOptions& o) {
  const bool rate = o.threshold == ThresholdKind::held_out, quantile = o.threshold == ThresholdKind::quantile;
  for (const char* key : {"threshold.drop", "threshold.release"}) {
    if (key == std::string("threshold.release") && !o.ledger_evidence) continue;
    const double level = s.real(key);
    if ((rate || quantile) && (level <= 0 || level >= 1)) {
      refuse(s, key,
             std::string("with `kind: ") + (rate ? "held_out" : "quantile") + "` the level is a probability in (0, 1)");
    }
  }
  if (!o.ledger_evidence) {
    if (s.has("threshold.release"))
      refuse(s, "threshold.release", "needs `evidence.kind: ledger`; a single visit has no past");
    return;
  }
  // In the unit of these kinds the default, a rate, would hardly ever release anything.
  if (!rate && !s.has("threshold.release")) {
    refuse(s, "threshold.kind",
           s.text("threshold.kind") +
               " with `evidence.kind: ledger` needs threshold.release in the same unit as threshold.drop (the same "
               "value: released as soon as it falls below that)");
  }
  // A rate falls as the level of evidence rises; all other kinds rise with it.
  if (rate ? o.release < o.drop : o.release > o.drop) {
    refuse(s, "threshold.release",
           "asks for more evidence than threshold.drop; it must be the more lenient of the two");
  }
}

void check_at_most(const Settings& s, const char* key, int64_t value, const char* limit_key, int64_t limit) {
  if (value <= limit) return;
  refuse(s, key,
         std::to_string(value) + " can never be reached with " + limit_key + ": " + std::to_string(limit) +
             ", so nothing would ever be dropped");
}

/// What could never act.
void check_counts(const Settings& s, const SieveOptions& o, const Setup& setup) {
  if (o.standardise == Standardise::timestep)
    check_at_most(s, "standardise.min_count", o.min_count, "standardise.window", o.window);
  if (o.threshold_is_relative())
    check_at_most(s, "standardise.min_count", o.min_count, "threshold.window", o.threshold_window);
  if (o.ledger_evidence) check_at_most(s, "evidence.min_visits", o.min_visits, "evidence.visits", o.visits);
  const int64_t block = o.block_rows > 0 ? o.block_rows : setup.rows_per_micro_batch;
  if (o.max_fraction * static_cast<double>(block) < 1) {
    refuse(s, "action.max_fraction",
           "lets no row of a block of " + std::to_string(block) + " rows be dropped; raise it to at least 1/" +
               std::to_string(block) + " or enlarge the block (block_rows, or the micro-batch)");
  }
}

void check_combinations(const Settings& s, const SieveOptions& o, const Setup& setup) {
  if (o.channels.empty()) refuse(s, "filters", "names no filter; add for example `magnitude: {}`");
  const bool wants_held_out = o.from_held_out || o.threshold == ThresholdKind::held_out;
  if (wants_held_out && o.held_out_rows == 0) {
    refuse(s, "held_out.rows",
           "is 0, but " +
               std::string(o.threshold == ThresholdKind::held_out ? "threshold.kind" : "standardise.population") +
               " is held_out; set it to 8 or so");
  }
  if (o.held_out_rows > 0 && setup.held_out_size == 0) {
    refuse(s, "held_out.rows", "asks for held-out rows, but the loop has no held-out pictures");
  }
  if (o.reference && o.standardise != Standardise::timestep) {
    refuse(s, "reference.kind", "start_model corrects z-scores; set standardise.by: timestep");
  }
  if (o.pool_groups && setup.group_id.empty()) refuse(s, "evidence.pool", "group, but the data set has no group ids");
  if (o.block_rows > setup.rows_per_micro_batch) {
    refuse(s, "block_rows",
           "is larger than the micro-batch of " + std::to_string(setup.rows_per_micro_batch) + " rows");
  }
  for (const auto& channel : o.channels) {
    const std::string key = "filters." + channel.name;
    if (o.standardise != Standardise::rms) continue;
    if (!channel.needs.magnitude)
      refuse(s, "standardise.by",
             "rms is for the magnitude alone; " + channel.name + " is no norm over C,H,W. Use `timestep` or `none`");
    const Settings own = s.section(key);
    // Only what `magnitude` itself declares: another filter's options may mean anything.
    if (channel.name == "magnitude" && (own.text("scale") == "log" || own.text("norm") == "rms")) {
      refuse(s, "standardise.by", "rms divides by sqrt(C*H*W) itself; use it with `scale: linear, norm: l2`");
    }
  }
  check_levels(s, o);
  check_counts(s, o, setup);
}

}  // namespace

SieveOptions read_options(const Settings& s, const Setup& setup) {
  SieveOptions o;
  const Settings filters = s.section("filters");
  // In the registry's order, not the file's: then the printed configuration means the same channels.
  for (const auto& entry : setup.filters.entries()) {
    if (!filters.has(entry.name)) continue;
    const Settings own = filters.section(entry.name);
    Channel channel;
    channel.name = entry.name;
    channel.weight = own.real("weight");
    channel.filter = entry.make(own);
    channel.needs = channel.filter->needs();
    o.channels.push_back(std::move(channel));
  }
  const std::string by = s.text("standardise.by"), kind = s.text("threshold.kind");
  o.standardise = by == "none" ? Standardise::none : by == "rms" ? Standardise::rms : Standardise::timestep;
  o.from_held_out = o.standardise == Standardise::timestep && s.text("standardise.population") == "held_out";
  o.bins = s.integer("standardise.bins");
  o.window = s.integer("standardise.window");
  o.min_count = s.integer("standardise.min_count");
  o.clip = s.real("standardise.clip");
  o.reference = s.text("reference.kind") == "start_model";
  o.draws = o.reference ? s.integer("reference.draws") : 0;
  o.ledger_evidence = s.text("evidence.kind") == "ledger";
  o.pool_groups = o.ledger_evidence && s.text("evidence.pool") == "group";
  o.visits = o.ledger_evidence ? s.integer("evidence.visits") : 1;
  o.min_visits = o.ledger_evidence ? s.integer("evidence.min_visits") : 1;
  o.threshold = kind == "fixed"      ? ThresholdKind::fixed
                : kind == "quantile" ? ThresholdKind::quantile
                : kind == "robust_z" ? ThresholdKind::robust_z
                                     : ThresholdKind::held_out;
  o.drop = s.real("threshold.drop");
  o.release = o.ledger_evidence ? s.real("threshold.release") : o.drop;
  o.threshold_window = s.integer("threshold.window");
  o.conformal = s.text("threshold.tail") == "conformal";
  o.action = s.text("action.kind") == "drop" ? Action::drop : Action::downweight;
  o.power = s.real("action.power");
  o.floor = s.real("action.floor");
  o.warmup_steps = s.integer("action.warmup_steps");
  o.max_fraction = s.real("action.max_fraction");
  o.probe_every = s.text("probe.kind") == "every";
  o.probe_fraction = s.real("probe.fraction");
  o.block_rows = s.integer("block_rows");
  o.held_out_rows = s.integer("held_out.rows");
  o.held_out_every = s.integer("held_out.every");
  o.flush_every = s.integer("ledger.flush_every");
  o.fail_on_nonfinite = s.text("on_nonfinite") == "fail";
  check_combinations(s, o, setup);
  return o;
}

}  // namespace memsieve
