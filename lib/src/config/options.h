#pragma once
// The `sieve:` mapping as plain data, checked as a whole. Private to the library.

#include <memsieve/filter.h>
#include <memsieve/sieve.h>

#include <memory>
#include <string>
#include <vector>

namespace memsieve {

enum class Standardise { none, rms, timestep };
enum class ThresholdKind { fixed, quantile, robust_z, held_out };
enum class Action { drop, downweight };

struct Channel {
  std::string name;
  double weight = 1;
  Needs needs;
  std::unique_ptr<Filter> filter;
};

struct SieveOptions {
  std::vector<Channel> channels;

  Standardise standardise = Standardise::none;
  /// the population that z-scores and the reference regression are taken against
  bool from_held_out = false;
  int64_t bins = 10, window = 100, min_count = 20;
  double clip = 4;

  bool reference = false;
  int64_t draws = 0;

  bool ledger_evidence = false, pool_groups = false;
  int64_t visits = 1, min_visits = 1;

  ThresholdKind threshold = ThresholdKind::fixed;
  double drop = 0, release = 0;
  int64_t threshold_window = 0;
  bool conformal = false;

  Action action = Action::drop;
  double power = 2, floor = 0, max_fraction = 1;
  int64_t warmup_steps = 0;

  bool probe_every = true;
  double probe_fraction = 1;
  int64_t block_rows = 0;

  int64_t held_out_rows = 0, held_out_every = 1;
  int64_t flush_every = 50;
  bool fail_on_nonfinite = true;

  bool needs_magnitude() const;
  double magnitude_timestep_min() const;
  /// Whether the levels rest on the evidence of training rows.
  bool threshold_is_relative() const {
    return threshold == ThresholdKind::quantile || threshold == ThresholdKind::robust_z;
  }
};

Schema sieve_schema(const FilterRegistry& filters);

/// Throws ConfigError naming the key for combinations that cannot work.
SieveOptions read_options(const Settings& sieve, const Setup& setup);

}  // namespace memsieve
