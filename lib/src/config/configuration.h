#pragma once
// The `sieve:` mapping as a whole. Private to the library.

#include <memsieve/sieve.h>

#include "judge/judge.h"
#include "record/options.h"
#include "signals/channel.h"

namespace memsieve {

Schema sieve_schema(const FilterRegistry& filters);

/// What a configuration comes to: each room's options.
struct Configuration {
  std::vector<Channel> channels;
  JudgeOptions judge;
  RecordOptions record;

  /// Throws ConfigError naming the key for combinations that cannot work.
  static Configuration read(const Settings& sieve, const Setup& setup);
};

}  // namespace memsieve
