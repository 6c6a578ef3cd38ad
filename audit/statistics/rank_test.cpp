#include <audit/statistics/rank_test.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace memsieve::audit {

namespace {

void require(const Rank& rank) {
  if (rank.rank < 1 || rank.rank > rank.variants)
    throw DataError("rank " + std::to_string(rank.rank) + " of " + std::to_string(rank.variants) +
                    " variants: must lie between 1 and their number");
}

/// From P(sum = s), s = 0, 1 ..., that of the sum with one more rank, uniform on 1..variants.
std::vector<double> with_one_more(const std::vector<double>& sums, int64_t variants) {
  const auto k = static_cast<size_t>(variants);
  std::vector<double> out(sums.size() + k, 0.0);
  // A window of k terms. In the lower tail, where p-values are small, it is about as large as what is taken from it, so
  // that their difference keeps its digits.
  double up_to = 0, before = 0;
  for (size_t s = 1; s < out.size(); ++s) {
    if (s - 1 < sums.size()) up_to += sums[s - 1];
    if (s > k) before += sums[s - 1 - k];
    out[s] = std::max(0.0, up_to - before) / static_cast<double>(variants);
  }
  return out;
}

}  // namespace

Rank rank_of(const std::vector<double>& errors, size_t planted) {
  if (planted >= errors.size())
    throw DataError("canary: variant " + std::to_string(planted) + " was planted, but there are " +
                    std::to_string(errors.size()) + " errors; measure all variants");
  for (size_t i = 0; i < errors.size(); ++i)
    if (std::isnan(errors[i])) throw DataError("canary: the error of variant " + std::to_string(i) + " is NaN");
  const auto no_larger =
      std::count_if(errors.begin(), errors.end(), [&](double error) { return error <= errors[planted]; });
  return {.rank = no_larger, .variants = static_cast<int64_t>(errors.size())};
}

double p_value(const Rank& rank) {
  require(rank);
  return static_cast<double>(rank.rank) / static_cast<double>(rank.variants);
}

double combined_p_value(const std::vector<Rank>& ranks) {
  if (ranks.empty()) throw DataError("canaries: there are no ranks to combine");
  int64_t sum = 0;
  std::vector<double> sums{1.0};
  for (const Rank& rank : ranks) {
    require(rank);
    sum += rank.rank;
    sums = with_one_more(sums, rank.variants);
  }
  double p = 0;
  for (int64_t s = 0; s <= sum; ++s) p += sums[static_cast<size_t>(s)];
  return std::min(p, 1.0);
}

}  // namespace memsieve::audit
