#pragma once
// How visits are recorded, and what a broken one does. Private to the library.

#include <memsieve/schema.h>

#include <string>
#include <vector>

namespace memsieve {

struct RecordOptions {
  /// the filters' names
  std::vector<std::string> channels;
  /// optimiser steps between writes of the ledger to disk
  int64_t flush_every = 50;
  /// a NaN or Inf stops all ranks; otherwise the update is skipped
  bool fail_on_nonfinite = true;
};

}  // namespace memsieve
