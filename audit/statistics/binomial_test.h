#pragma once
// Does something happen more often than it would by chance? One-sided, exact.

#include <cstdint>

namespace memsieve::audit {

/// P(X >= successes) for X ~ Binomial(trials, rate): the p-value of "the rate is at most `rate`". Throws DataError
/// unless 0 <= successes <= trials, trials >= 1 and 0 <= rate <= 1.
double binomial_test(int64_t successes, int64_t trials, double rate);

/// The smallest count whose p-value is at most `level`; trials + 1 if not even all trials reach it.
int64_t binomial_critical_count(int64_t trials, double rate, double level);

/// The same question where the rate is not known but was counted, `clean` of `clean_trials`: Fisher's exact test ("The
/// Design of Experiments", 1935), P(X >= successes) given the number of successes of both together.
double fisher_test(int64_t successes, int64_t trials, int64_t clean, int64_t clean_trials);

}  // namespace memsieve::audit
