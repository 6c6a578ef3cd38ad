#include <audit/statistics/intervals.h>
#include <memsieve/error.h>

#include <boost/math/distributions/binomial.hpp>
#include <boost/math/distributions/students_t.hpp>
#include <cmath>
#include <limits>
#include <string>

namespace memsieve::audit {

namespace {

void require_level(double level) {
  if (!(level > 0 && level < 1))
    throw DataError("level: is " + std::to_string(level) + "; it must lie between 0 and 1");
}

}  // namespace

Interval clopper_pearson(int64_t successes, int64_t trials, double level) {
  require_level(level);
  if (trials < 1 || successes < 0 || successes > trials)
    throw DataError("clopper_pearson: " + std::to_string(successes) + " of " + std::to_string(trials) +
                    " is no count of successes; at least one trial is needed");
  using Binomial = boost::math::binomial_distribution<double>;
  const auto n = static_cast<double>(trials), k = static_cast<double>(successes);
  const double tail = (1 - level) / 2;
  return {.estimate = k / n,
          .low = Binomial::find_lower_bound_on_p(n, k, tail),
          .high = Binomial::find_upper_bound_on_p(n, k, tail)};
}

Interval mean_interval(const std::vector<double>& values, double level) {
  require_level(level);
  if (values.empty()) throw DataError("mean_interval: there are no values; measure at least one");
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      throw DataError("mean_interval: value " + std::to_string(i) +
                      " is NaN or Inf; find out why it was measured so, or leave it out");
    sum += values[i];
  }
  const double mean = sum / n;
  if (values.size() == 1) {
    const double endless = std::numeric_limits<double>::infinity();
    return {.estimate = mean, .low = -endless, .high = endless};
  }
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double error = std::sqrt(squares / (n - 1) / n);
  const double t = quantile(complement(boost::math::students_t_distribution<double>(n - 1), (1 - level) / 2));
  return {.estimate = mean, .low = mean - t * error, .high = mean + t * error};
}

}  // namespace memsieve::audit
