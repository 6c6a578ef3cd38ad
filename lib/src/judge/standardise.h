#pragma once
// Standardise: scores at different timesteps are made comparable. Private to the library.

#include <memsieve/schema.h>

#include "judge/state.h"
#include "judge/window.h"
#include "signals/channel.h"
#include "signals/raw_scores.h"

namespace memsieve {

struct StandardiseOptions {
  enum class By { none, rms, timestep, running_mean };
  enum class Population { training, held_out };
  By by = By::timestep;
  /// whose scores z-scores and the reference regression are taken against; only with `timestep`
  Population population = Population::held_out;
  int64_t bins = 10, window = 100, min_count = 20;
  double clip = 4;
  /// only with `running_mean`
  double decay = 0.8;

  static Schema schema();
  static StandardiseOptions read(const Settings& sieve);
  void check(const Settings& sieve, const std::vector<Channel>& channels) const;
  bool by_timestep() const { return by == By::timestep; }
  bool by_running_mean() const { return by == By::running_mean; }
  bool from_held_out() const { return by_timestep() && population == Population::held_out; }
};

/// Holds the recent scores of each channel and cell, or each cell's running mean; a cell is a timestep bin, with
/// `running_mean` a timestep, of one stratum.
class Standardise {
 public:
  Standardise(const StandardiseOptions& options, int64_t channels, int64_t num_timesteps, int64_t strata,
              at::Device device);

  int64_t strata() const { return strata_; }
  int64_t cells() const { return strata_ * bins_; }
  /// timestep [R], stratum [R] int64 or undefined = all 0 -> [R] int64 in [0, cells)
  at::Tensor cell_of(const at::Tensor& timestep, const at::Tensor& stratum) const;
  /// [R, C]; NaN where a score was not measured or its cell knows too few yet.
  at::Tensor apply(const RawScores& scores) const;
  /// Raw scores [R, C] of cells [R], where valid [R], into the rings of their cells.
  void fold(const at::Tensor& cell, const at::Tensor& raw, const at::Tensor& valid);
  /// After `fold`, or once the state was overwritten.
  void refresh();
  State state();

 private:
  void fold_mean(const at::Tensor& cell, const at::Tensor& raw, const at::Tensor& valid);

  StandardiseOptions options_;
  int64_t num_timesteps_, strata_, bins_;
  /// [channels * cells, window, 1]; one ring, unused, with `running_mean`
  Rings scores_;
  /// [2, channels, cells] of scores_; NaN = too few of them
  at::Tensor location_and_scale_;
  /// [cells + 1] of the only channel, with `running_mean`; 0 = nothing known. The last takes what must not be kept.
  at::Tensor mean_;
};

}  // namespace memsieve
