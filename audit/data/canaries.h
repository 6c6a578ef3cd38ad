#pragma once
// What `memsieve canaries` planted: of each canary K variants, of which one went into the training data.

#include <audit/audit_rooms.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::audit {

struct Canary {
  /// place of the one that was planted among `rows`
  int64_t planted = 0;
  /// of all variants in the data set of variants
  std::vector<int64_t> rows;
};

/// The canaries of `manifest`, their rows found by /file_name in the data set `data`. Throws DataError for a file that
/// is no manifest, and for a variant that the data set does not hold, or twice.
std::vector<Canary> read_canaries(const std::string& manifest, const std::string& data);

}  // namespace memsieve::audit
