#pragma once
// What the stages share when they read their part of the `sieve:` mapping. Private to the library.

#include <memsieve/error.h>
#include <memsieve/schema.h>

#include <algorithm>
#include <string>
#include <vector>

namespace memsieve {

/// Throws ConfigError: where `key` of `sieve` was set, and `what` is wrong with it.
[[noreturn]] inline void refuse(const Settings& sieve, const std::string& key, const std::string& what) {
  throw ConfigError(sieve.where(key) + ": " + what);
}

/// Refuses a count that no amount of rows can reach.
inline void check_at_most(const Settings& sieve, const std::string& key, int64_t value, const std::string& limit_key,
                          int64_t limit) {
  if (value <= limit) return;
  refuse(sieve, key,
         std::to_string(value) + " can never be reached with " + limit_key + ": " + std::to_string(limit) +
             ", so nothing would ever be dropped");
}

/// The names of an enumeration's values in YAML, in the order of their declaration.
using Names = std::vector<std::string>;

template <typename Enum>
const std::string& name_of(const Names& names, Enum value) {
  return names.at(static_cast<size_t>(value));
}

template <typename Enum>
Enum read_choice(const Settings& sieve, const std::string& key, const Names& names) {
  return static_cast<Enum>(std::find(names.begin(), names.end(), sieve.text(key)) - names.begin());
}

}  // namespace memsieve
