#include <audit/statistics/descriptive.h>

#include <algorithm>
#include <numeric>

namespace memsieve::audit {

double mean(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

int64_t count_at_least(std::span<const double> values, double level) {
  return std::count_if(values.begin(), values.end(), [level](double value) { return value >= level; });
}

}  // namespace memsieve::audit
