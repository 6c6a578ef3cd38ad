#pragma once
// Intervals that contain the truth with at least a given probability, the level.

#include <cstdint>
#include <vector>

namespace memsieve::audit {

inline constexpr double kLevel = 0.95;

/// low <= estimate <= high but for bootstrap intervals, which may leave their estimate outside.
struct Interval {
  double estimate = 0, low = 0, high = 0;
};

/// Of the probability behind `successes` of `trials` (Clopper and Pearson, Biometrika 1934): exact, so it never covers
/// less than `level`; 0 successes give (0, u), all give (l, 1). Throws DataError unless 0 <= successes <= trials,
/// trials >= 1 and 0 < level < 1.
Interval clopper_pearson(int64_t successes, int64_t trials, double level = kLevel);

/// Of the mean behind `values`, by Student's t: right where they are independent and near normal, or many. One value
/// alone has an infinite interval. Throws DataError for none, for a NaN or Inf, and for a level outside (0, 1).
Interval mean_interval(const std::vector<double>& values, double level = kLevel);

}  // namespace memsieve::audit
