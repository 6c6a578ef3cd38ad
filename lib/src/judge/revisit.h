#pragma once
// Revisit: how often flagged samples, which the loop passes over, are looked at again. Private to the library.

#include <memsieve/schema.h>

#include "judge/action.h"

namespace memsieve {

struct RevisitOptions {
  /// of a step, over all ranks
  int64_t rows = 0;
  /// optimiser steps from one look to the next
  int64_t every = 1;

  static Schema schema();
  static RevisitOptions read(const Settings& sieve);
  void check(const Settings& sieve, const ActionOptions& action) const;
  /// Whether flagged samples are looked at in step `step`.
  bool looks(int64_t step) const { return rows > 0 && step % every == 0; }
};

}  // namespace memsieve
