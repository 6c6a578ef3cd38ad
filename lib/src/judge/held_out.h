#pragma once
// Which held-out rows are observed when. Pure. Private to the library.

#include <memsieve/batch.h>
#include <memsieve/schema.h>
#include <memsieve/sieve.h>

#include <vector>

namespace memsieve {

struct HeldOutOptions {
  /// of a step, over all ranks
  int64_t rows = 0;
  /// optimiser steps from one observation to the next
  int64_t every = 1;

  static Schema schema();
  static HeldOutOptions read(const Settings& sieve);
  /// `wanted_by`: the key whose value is held_out, "" if there is none.
  void check(const Settings& sieve, const Setup& setup, const std::string& wanted_by) const;
  /// Whether held-out rows are observed in step `step`.
  bool observes(int64_t step) const { return rows > 0 && step % every == 0; }
};

/// Time in [0, 1) for the row at `place` of `rows`, which cover it evenly, four neighbours too.
/// `turn` numbers the occasions.
double stratified_time(int64_t turn, int64_t place, int64_t rows);

/// This rank's share of step `step`'s `rows` visits. Each cycle over the pseudo-rows is shuffled anew; pseudo-row p
/// shows picture p % pictures.
std::vector<HeldOutVisit> plan_held_out(int64_t step, int64_t rows, int64_t pictures, int64_t pseudo_rows, int64_t rank,
                                        int64_t rows_per_rank);

}  // namespace memsieve
