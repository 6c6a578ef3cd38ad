// Exact intervals against closed forms, SciPy and their promise to cover.
#include <audit/statistics/intervals.h>
#include <memsieve/error.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

namespace of_test_intervals {

using namespace memsieve;
using namespace memsieve::audit;

TEST_CASE("Clopper and Pearson's interval at the ends has a closed form") {
  for (const int64_t n : {1, 10, 500}) {
    const double u = std::pow(0.025, 1.0 / static_cast<double>(n));
    const Interval none = clopper_pearson(0, n), all = clopper_pearson(n, n);
    REQUIRE(none.low == 0);
    REQUIRE(none.high == Approx(1 - u).epsilon(1e-10));
    REQUIRE(all.low == Approx(u).epsilon(1e-10));
    REQUIRE(all.high == 1);
    REQUIRE(none.estimate == 0);
    REQUIRE(all.estimate == 1);
  }
}

TEST_CASE("Clopper and Pearson's interval is SciPy's") {
  // scipy.stats.binomtest(k, n).proportion_ci(level, "exact")
  const Interval a = clopper_pearson(3, 20), b = clopper_pearson(157, 1000, 0.99);
  REQUIRE(a.estimate == Approx(0.15));
  REQUIRE(a.low == Approx(0.03207093718554477).epsilon(1e-9));
  REQUIRE(a.high == Approx(0.37892682654529564).epsilon(1e-9));
  REQUIRE(b.low == Approx(0.1285654861312434).epsilon(1e-9));
  REQUIRE(b.high == Approx(0.1887648978866484).epsilon(1e-9));
}

TEST_CASE("Clopper and Pearson's interval covers at least as often as it says") {
  constexpr int64_t n = 12;
  std::vector<Interval> intervals;
  for (int64_t k = 0; k <= n; ++k) intervals.push_back(clopper_pearson(k, n, 0.9));
  for (double p = 0.01; p < 1; p += 0.01) {
    double covered = 0, pmf = std::pow(1 - p, n);
    for (int64_t k = 0; k <= n; ++k) {
      const auto& interval = intervals[static_cast<size_t>(k)];
      if (interval.low <= p && p <= interval.high) covered += pmf;
      pmf *= p / (1 - p) * static_cast<double>(n - k) / static_cast<double>(k + 1);
    }
    CAPTURE(p);
    REQUIRE(covered >= 0.9 - 1e-12);
  }
}

TEST_CASE("the interval of a mean is Student's") {
  // t = 3.182446 at 3 degrees of freedom; the deviation of 1, 2, 3, 4 is sqrt(5 / 3)
  const Interval interval = mean_interval({1, 2, 3, 4});
  REQUIRE(interval.estimate == 2.5);
  REQUIRE(interval.high - 2.5 == Approx(3.182446305284264 * std::sqrt(5.0 / 3 / 4)).epsilon(1e-10));
  REQUIRE(2.5 - interval.low == Approx(interval.high - 2.5));
  const Interval same = mean_interval({7, 7, 7});
  REQUIRE(same.low == 7);
  REQUIRE(same.high == 7);
  REQUIRE(std::isinf(mean_interval({1}).high));
}

TEST_CASE("what has no interval is refused") {
  REQUIRE_THROWS_AS(clopper_pearson(1, 0), DataError);
  REQUIRE_THROWS_AS(clopper_pearson(3, 2), DataError);
  REQUIRE_THROWS_AS(clopper_pearson(-1, 2), DataError);
  REQUIRE_THROWS_AS(clopper_pearson(1, 2, 1), DataError);
  REQUIRE_THROWS_AS(mean_interval({}), DataError);
  REQUIRE_THROWS_WITH(mean_interval({1, std::numeric_limits<double>::quiet_NaN()}), Catch::Contains("value 1"));
}

}  // namespace of_test_intervals
