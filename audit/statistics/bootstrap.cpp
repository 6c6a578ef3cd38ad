#include <audit/statistics/bootstrap.h>
#include <audit/statistics/descriptive.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

namespace memsieve::audit {

namespace {

/// As many of `values`, each drawn from all of them. The standard library's distributions differ between compilers.
std::vector<double> resample(const std::vector<double>& values, std::mt19937_64& bits) {
  std::vector<double> out(values.size());
  for (double& value : out) value = values[((bits() >> 32) * values.size()) >> 32];
  return out;
}

void require(const BootstrapOptions& options, size_t values, const std::string& what) {
  if (values == 0) throw DataError(what + ": there is nothing to draw from; measure at least one");
  if (values >= (size_t{1} << 32)) throw DataError(what + ": more than 2^32 values; take a part of them");
  if (options.resamples < 1) throw DataError("resamples: must be at least 1");
  if (!(options.level > 0 && options.level < 1)) throw DataError("level: must lie between 0 and 1");
}

Interval percentiles(double estimate, const std::vector<double>& drawn, double level) {
  const double tail = (1 - level) / 2;
  return {.estimate = estimate, .low = quantile(drawn, tail), .high = quantile(drawn, 1 - tail)};
}

}  // namespace

double quantile(std::vector<double> values, double fraction) {
  if (values.empty() || !(fraction >= 0 && fraction <= 1))
    throw DataError("quantile: needs values and a fraction between 0 and 1");
  std::sort(values.begin(), values.end());
  const double place = fraction * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, values.size() - 1);
  if (values[below] == values[above]) return values[below];  // also two infinities
  return values[below] + (place - std::floor(place)) * (values[above] - values[below]);
}

Interval bootstrap(const Scores& scores, const std::function<double(const Scores&)>& measure,
                   const BootstrapOptions& options) {
  require(options, scores.positives.size(), "positives");
  require(options, scores.negatives.size(), "negatives");
  std::mt19937_64 bits(options.seed);
  std::vector<double> drawn;
  for (int64_t i = 0; i < options.resamples; ++i) {
    Scores anew;
    anew.positives = resample(scores.positives, bits);
    anew.negatives = resample(scores.negatives, bits);
    drawn.push_back(measure(anew));
  }
  return percentiles(measure(scores), drawn, options.level);
}

Interval bootstrap_mean(const std::vector<double>& values, const BootstrapOptions& options) {
  require(options, values.size(), "values");
  const auto wrong = std::find_if(values.begin(), values.end(), [](double v) { return !std::isfinite(v); });
  if (wrong != values.end())
    throw DataError("value " + std::to_string(wrong - values.begin()) +
                    " is NaN or Inf; find out why it was measured so, or leave it out");
  std::mt19937_64 bits(options.seed);
  std::vector<double> drawn;
  for (int64_t i = 0; i < options.resamples; ++i) drawn.push_back(mean(resample(values, bits)));
  return percentiles(mean(values), drawn, options.level);
}

}  // namespace memsieve::audit
