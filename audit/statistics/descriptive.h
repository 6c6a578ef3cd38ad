#pragma once
// What values are like by themselves.

#include <cstdint>
#include <span>

namespace memsieve::audit {

/// NaN of none.
double mean(std::span<const double> values);

/// How many are `level` or more.
int64_t count_at_least(std::span<const double> values, double level);

}  // namespace memsieve::audit
