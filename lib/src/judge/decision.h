#pragma once
// From evidence to weights. Pure functions. Private to the library.

#include <ATen/core/Tensor.h>

#include "config/options.h"

namespace memsieve {

/// Levels of evidence in force, 0-dim float32 on the device; +inf = nobody is dropped.
struct Levels {
  at::Tensor drop, release;
};

/// [K] float32: the levels that held-out evidence [P] (NaN = none yet) stays below with the probabilities `below`
/// [K] float64.
at::Tensor held_out_levels(const at::Tensor& scores, const at::Tensor& below, bool conformal, int64_t min_count);
/// [K] float32: the levels from the evidence of recent training visits [W] (NaN = none yet), for `quantile` and
/// `robust_z`; `levels` [K] float32 in that kind's unit.
at::Tensor training_levels(const at::Tensor& scores, ThresholdKind kind, const at::Tensor& levels, int64_t min_count);

/// [B] bool: beyond the drop level, or judged before and not yet below the release level. Rows without evidence keep
/// what they had.
at::Tensor judge(const at::Tensor& score, const at::Tensor& enough_visits, const at::Tensor& flagged_before,
                 const Levels& levels);

/// [B] float32. `block`: rows that the cap on the dropped fraction is counted over.
at::Tensor weigh(const at::Tensor& score, const at::Tensor& flagged, const Levels& levels, const SieveOptions& options,
                 int64_t block);

/// Rows to probe: in each block the `per_block` with the highest priority. priority [B] -> [blocks * per_block] int64;
/// when the last block is short, rows repeat, so that the shape depends on B alone.
at::Tensor choose_rows(const at::Tensor& priority, int64_t block, int64_t per_block);

}  // namespace memsieve
