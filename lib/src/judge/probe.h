#pragma once
// Probe: which rows counterfactual predictions are spent on. Private to the library.

#include <memsieve/schema.h>

#include "judge/state.h"

namespace memsieve {

struct ProbeOptions {
  enum class Kind { every, budget };
  Kind kind = Kind::every;
  double fraction = 0.25;
  /// optimiser steps from one with probes to the next
  int64_t steps = 1;
  /// of a row with many copies, as evidence counts; 0 = likeness is not looked at
  double likeness = 0;

  static Schema schema();
  static ProbeOptions read(const Settings& sieve);
  bool every() const { return kind == Kind::every; }
  /// Whether rows are probed in step `step`.
  bool probes(int64_t step) const { return every() || step % steps == 0; }
};

/// Rows to probe: in each block the `per_block` with the highest priority. priority [B] -> [blocks * per_block] int64;
/// when the last block is short, rows repeat, so that the shape depends on B alone.
at::Tensor choose_rows(const at::Tensor& priority, int64_t block, int64_t per_block);

/// Holds how long ago each slot (judge/slots.h) was probed.
class Probe {
 public:
  Probe(const ProbeOptions& options, int64_t slots, at::Device device);

  /// [k] int64, k depends on shapes alone. Rows of slots [B] with evidence `score` [B] (NaN = none); `eligible` [B]
  /// bool: those for which a probe would count come first.
  at::Tensor choose(const at::Tensor& slot, const at::Tensor& score, const at::Tensor& eligible, int64_t block) const;
  /// The same by what was known before this visit alone, so that what it will show is no part of the choice: evidence
  /// `score` [B], the share of copies
  /// `alike` [B] or undefined, visits since the last probe. Rows judged memorised, `flagged` [B],
  /// wait a visit and one more for each unit of evidence beyond `level` [].
  at::Tensor choose_by_past(const at::Tensor& slot, const at::Tensor& score, const at::Tensor& alike,
                            const at::Tensor& flagged, const at::Tensor& level, const at::Tensor& eligible,
                            int64_t block) const;
  /// How many of `rows` either chooses.
  int64_t count(int64_t rows, int64_t block) const { return (rows + block - 1) / block * per_block(block); }
  /// Visits of slots [R], where counted [R]; `probed` [R] bool.
  void fold(const at::Tensor& slot, const at::Tensor& counted, const at::Tensor& probed);
  State state() { return {{"unprobed", &unprobed_}}; }

 private:
  int64_t per_block(int64_t block) const;
  at::Tensor best(const at::Tensor& priority, const at::Tensor& eligible, int64_t block) const;

  ProbeOptions options_;
  int64_t slots_;
  /// [slots + 1] float32: visits since the last probe; the last takes what must not be kept
  at::Tensor unprobed_;
};

}  // namespace memsieve
