#pragma once
// Action: what happens to a row that was judged memorised. Private to the library.

#include <memsieve/schema.h>

#include "judge/threshold.h"

namespace memsieve {

struct ActionOptions {
  enum class Kind { drop, downweight };
  Kind kind = Kind::drop;
  double power = 2, floor = 0, max_fraction = 1;
  int64_t warmup_steps = 0;
  /// the loop is asked to pass over samples that are judged memorised
  bool pass_over = false;

  static Schema schema();
  static ActionOptions read(const Settings& sieve);
  /// `block`: rows that the cap on the dropped fraction is counted over.
  void check(const Settings& sieve, const EvidenceOptions& evidence, int64_t block) const;
};

/// [B] float32. `block`: rows that the cap on the dropped fraction is counted over.
at::Tensor weigh(const at::Tensor& score, const at::Tensor& flagged, const Levels& levels, const ActionOptions& options,
                 int64_t block);

}  // namespace memsieve
