#pragma once
// The configured filters. Private to the library.

#include <memsieve/filter.h>

#include <memory>
#include <string>
#include <vector>

namespace memsieve {

/// One configured filter and what it reads.
struct Channel {
  std::string name;
  /// factor of its evidence
  double weight = 1;
  Needs needs;
  std::unique_ptr<Filter> filter;
  /// one of its signals needs a counterfactual prediction
  bool counterfactual = false;
  /// one of its signals is a norm over C,H,W
  bool reads_norm = false;
  /// one of its signals compares with the starting model
  bool reads_start = false;
};

/// The `filters:` mapping: each filter's own options and its weight.
Schema filters_schema(const FilterRegistry& registry);

/// The filters that `sieve` names, in the registry's order. Throws ConfigError if there is none, or if one reads a
/// signal that the registry does not know, or scores none of the `num_timesteps` timesteps.
std::vector<Channel> read_channels(const Settings& sieve, const FilterRegistry& registry, int64_t num_timesteps);

}  // namespace memsieve
