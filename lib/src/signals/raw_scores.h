#pragma once
// What the judge is told of rows: everything measured, nothing judged. Private to the library.

#include <ATen/core/Tensor.h>

namespace memsieve {

/// Each channel's scores of B rows, before standardisation.
struct RawScores {
  /// [B, C] float32, NaN = not measured
  at::Tensor raw;
  /// [B] float32
  at::Tensor timestep;
  /// [B] bool: with a caption, and not exempt
  at::Tensor captioned;
  /// [B] bool: a counterfactual signal was measured and counts
  at::Tensor probed;
  /// [B] bool: a NaN or Inf where none may be
  at::Tensor nonfinite;
  /// [B] bool: weight 1, no score, no trace in any statistic; undefined = none
  at::Tensor exempt;
  /// [B] int64 in [0, strata); undefined = all 0
  at::Tensor stratum;
  /// [B, kLikenessWidth] (signals/features.h); undefined = the judge does not ask, or the loop does not say
  at::Tensor likeness;
  /// C*H*W of one row
  int64_t elements = 0;
};

}  // namespace memsieve
