#pragma once
// Bootstrap intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13): what a measure
// would have been on other samples of the same size.

#include <audit/statistics/intervals.h>
#include <audit/statistics/roc.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace memsieve::audit {

struct BootstrapOptions {
  int64_t resamples = 2000;
  double level = kLevel;
  uint64_t seed = 0;
};

/// The percentile interval of `measure`, positives and negatives drawn anew each by itself; the estimate is that of
/// `scores` themselves. The same seed gives the same interval on every machine. Draw one score per prompt, not one per
/// picture: those of a prompt are not independent. Near 0 and 1, and at false positive rates of a few negatives, such
/// an interval is too narrow. Throws DataError for a side without scores, fewer than 1 resample or a level that is
/// not between 0 and 1.
Interval bootstrap(const Scores& scores, const std::function<double(const Scores&)>& measure,
                   const BootstrapOptions& options = {});

/// The percentile interval of the mean of `values`, drawn anew: one value per prompt, as above. Of one value it has no
/// width. Throws DataError for none, for a NaN or Inf, and for such options.
Interval bootstrap_mean(const std::vector<double>& values, const BootstrapOptions& options = {});

/// The value below which `fraction` of the values lie, linear between neighbours (numpy.quantile's default). Sorts.
double quantile(std::vector<double> values, double fraction);

}  // namespace memsieve::audit
