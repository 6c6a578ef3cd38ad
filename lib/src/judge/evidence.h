#pragma once
// What the last visits of a sample have shown, as one number. Pure functions. Private to the library.

#include <ATen/core/Tensor.h>

#include <vector>

namespace memsieve {

struct Evidence {
  /// [R] float32, NaN where no visit was measured
  at::Tensor score;
  /// [R] int64, visits with at least one measured channel
  at::Tensor visits;
};

/// windows [R, V, C] of standardised scores, NaN = not measured; weights [C]. score = sum over channels of weight *
/// sqrt(n) * mean: under independent standard-normal visits each term has unit variance whatever the number n of visits
/// (Stouffer's method).
Evidence evidence(const at::Tensor& windows, const at::Tensor& weights);

/// Past windows [B, V, C] of rows whose rings hold `counts` [B] items, with this visit's scores `current` [B, C] in the
/// place of the oldest, where `measured` [B].
at::Tensor with_current(const at::Tensor& past, const at::Tensor& counts, const at::Tensor& current,
                        const at::Tensor& measured);

}  // namespace memsieve
