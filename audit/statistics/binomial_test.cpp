#include <audit/statistics/binomial_test.h>
#include <memsieve/error.h>

#include <algorithm>
#include <boost/math/distributions/binomial.hpp>
#include <boost/math/distributions/hypergeometric.hpp>
#include <limits>
#include <string>

namespace memsieve::audit {

namespace {

void require_counts(int64_t successes, int64_t trials) {
  if (trials < 1 || successes < 0 || successes > trials)
    throw DataError(std::to_string(successes) + " of " + std::to_string(trials) +
                    ": the count must lie between 0 and the number of trials, and there must be one");
  if (trials > std::numeric_limits<int32_t>::max() / 4)
    throw DataError(std::to_string(trials) + " trials: at most 500 million can be tested");
}

}  // namespace

double binomial_test(int64_t successes, int64_t trials, double rate) {
  require_counts(successes, trials);
  if (!(rate >= 0 && rate <= 1)) throw DataError("rate: is " + std::to_string(rate) + "; it must lie between 0 and 1");
  if (successes == 0) return 1;
  const boost::math::binomial_distribution<double> chance(static_cast<double>(trials), rate);
  return cdf(complement(chance, static_cast<double>(successes - 1)));
}

int64_t binomial_critical_count(int64_t trials, double rate, double level) {
  // The p-value falls as the count grows.
  int64_t low = 0, high = trials + 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (binomial_test(middle, trials, rate) <= level)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

double fisher_test(int64_t successes, int64_t trials, int64_t clean, int64_t clean_trials) {
  require_counts(successes, trials);
  require_counts(clean, clean_trials);
  const int64_t lowest = std::max<int64_t>(0, successes + clean - clean_trials);
  if (successes <= lowest) return 1;
  const boost::math::hypergeometric_distribution<double> chance(static_cast<unsigned>(successes + clean),
                                                                static_cast<unsigned>(trials),
                                                                static_cast<unsigned>(trials + clean_trials));
  return cdf(complement(chance, static_cast<unsigned>(successes - 1)));
}

}  // namespace memsieve::audit
