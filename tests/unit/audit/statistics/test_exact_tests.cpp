// Exact tests against fractions worked out by hand, and against simulation where nothing is to be found.
#include <audit/statistics/binomial_test.h>
#include <audit/statistics/intervals.h>
#include <audit/statistics/rank_test.h>
#include <memsieve/error.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <random>

namespace of_test_exact_tests {

using namespace memsieve;
using namespace memsieve::audit;

TEST_CASE("ranks count from the smallest error, ties against the canary") {
  REQUIRE(rank_of({0.3, 0.1, 0.2}, 1).rank == 1);
  REQUIRE(rank_of({0.3, 0.1, 0.2}, 0).rank == 3);
  REQUIRE(rank_of({0.3, 0.1, 0.2}, 0).variants == 3);
  REQUIRE(rank_of({0.2, 0.2, 0.2, 0.1}, 0).rank == 4);
  REQUIRE(p_value({2, 8}) == 0.25);
  REQUIRE_THROWS_WITH(rank_of({0.1, 0.2}, 2), Catch::Contains("measure all variants"));
  REQUIRE_THROWS_WITH(rank_of({0.1, std::numeric_limits<double>::quiet_NaN()}, 0), Catch::Contains("variant 1"));
}

TEST_CASE("combined ranks are sums of dice") {
  // Of 216 throws of three dice C(s, 3) have at most s pips, while s <= 8.
  const auto dice = [](std::vector<int64_t> pips) {
    std::vector<Rank> ranks;
    for (const auto p : pips) ranks.push_back({p, 6});
    return combined_p_value(ranks);
  };
  REQUIRE(dice({1, 1, 1}) == Approx(1.0 / 216).epsilon(1e-12));
  REQUIRE(dice({1, 2, 2}) == Approx(10.0 / 216).epsilon(1e-12));
  REQUIRE(dice({3, 2, 2}) == Approx(35.0 / 216).epsilon(1e-12));
  REQUIRE(dice({4, 3, 3}) == Approx(0.5).epsilon(1e-12));
  REQUIRE(dice({6, 6, 6}) == Approx(1).epsilon(1e-12));
  REQUIRE(dice({4}) == Approx(4.0 / 6).epsilon(1e-12));
  // A die of 4 and one of 6: 24 throws, of which (1,1), (1,2), (2,1) have at most 3.
  REQUIRE(combined_p_value({{1, 4}, {2, 6}}) == Approx(3.0 / 24).epsilon(1e-12));
}

TEST_CASE("a tail far out keeps its digits") {
  // All of 12 canaries first of 100: 100^-12. One second: 13 of them.
  std::vector<Rank> ranks(12, {1, 100});
  REQUIRE(combined_p_value(ranks) == Approx(1e-24).epsilon(1e-9));
  ranks[5].rank = 2;
  REQUIRE(combined_p_value(ranks) == Approx(13e-24).epsilon(1e-9));
  // sum <= 12 + 100 of 12 ranks, below and above where a window begins: C(112, 12) less those with a rank above 100,
  // 12 x C(12, 12).
  std::fill(ranks.begin(), ranks.end(), Rank{1, 100});
  ranks[0].rank = 100;
  ranks[1].rank = 2;
  REQUIRE(combined_p_value(ranks) == Approx(4416904685676744e-24).epsilon(1e-9));
}

TEST_CASE("a binomial tail is the sum of its terms") {
  // 10 coins: 1, 10, 45 of 1024
  REQUIRE(binomial_test(10, 10, 0.5) == Approx(1.0 / 1024).epsilon(1e-12));
  REQUIRE(binomial_test(8, 10, 0.5) == Approx(56.0 / 1024).epsilon(1e-12));
  REQUIRE(binomial_test(0, 10, 0.5) == 1);
  REQUIRE(binomial_test(1, 3, 0.25) == Approx(1 - std::pow(0.75, 3)).epsilon(1e-12));
  REQUIRE(binomial_test(0, 3, 0) == 1);
  REQUIRE(binomial_test(1, 3, 0) == 0);
  REQUIRE(binomial_test(3, 3, 1) == 1);
}

TEST_CASE("counts that are significant at 1% among 50") {
  REQUIRE(binomial_critical_count(50, 0.05, 0.01) == 8);
  REQUIRE(binomial_critical_count(50, 0.1, 0.01) == 11);
  REQUIRE(binomial_critical_count(50, 0.2, 0.01) == 18);
  REQUIRE(binomial_critical_count(50, 0.5, 0.01) == 34);
  REQUIRE(binomial_critical_count(2, 0.5, 0.01) == 3);  // not even both
  for (const double rate : {0.05, 0.3}) {
    const int64_t count = binomial_critical_count(50, rate, 0.01);
    REQUIRE(binomial_test(count, 50, rate) <= 0.01);
    REQUIRE(binomial_test(count - 1, 50, rate) > 0.01);
  }
}

TEST_CASE("Fisher's lady tasting tea") {
  REQUIRE(fisher_test(4, 4, 0, 4) == Approx(1.0 / 70).epsilon(1e-12));
  REQUIRE(fisher_test(3, 4, 1, 4) == Approx(17.0 / 70).epsilon(1e-12));
  REQUIRE(fisher_test(0, 4, 4, 4) == 1);
  REQUIRE(fisher_test(2, 4, 4, 4) == 1);  // it cannot be fewer
  // Many clean trials: the rate is as good as known.
  REQUIRE(fisher_test(8, 50, 50000, 1000000) == Approx(binomial_test(8, 50, 0.05)).epsilon(0.01));
}

TEST_CASE("what is no count or rank is refused") {
  REQUIRE_THROWS_AS(p_value({0, 8}), DataError);
  REQUIRE_THROWS_AS(p_value({9, 8}), DataError);
  REQUIRE_THROWS_AS(combined_p_value({}), DataError);
  REQUIRE_THROWS_AS(binomial_test(3, 2, 0.5), DataError);
  REQUIRE_THROWS_AS(binomial_test(1, 2, 1.5), DataError);
  REQUIRE_THROWS_AS(binomial_test(0, 0, 0.5), DataError);
  REQUIRE_THROWS_AS(fisher_test(1, 2, 3, 2), DataError);
}

TEST_CASE("ten thousand models that never saw the canaries: alarms as often as promised") {
  // Errors of the variants differ a lot from canary to canary and have heavy tails; only which one was planted is
  // chosen at random.
  std::mt19937_64 bits(11);
  std::normal_distribution<double> normal;
  constexpr int64_t kRuns = 10000;
  int64_t one = 0, combined = 0;
  for (int64_t run = 0; run < kRuns; ++run) {
    std::vector<Rank> ranks;
    for (int canary = 0; canary < 4; ++canary) {
      std::vector<double> errors;
      for (int i = 0; i < 20; ++i) errors.push_back(std::exp(canary + 2 * normal(bits)));
      ranks.push_back(rank_of(errors, bits() % 20));
    }
    one += p_value(ranks[0]) <= 0.05;
    combined += combined_p_value(ranks) <= 0.05;
  }
  // 1 of 20 ranks is at 5% exactly; the largest attainable level of the sum of four at or below 5% is a little less.
  const Interval of_one = clopper_pearson(one, kRuns, 0.999), of_sum = clopper_pearson(combined, kRuns, 0.999);
  REQUIRE(of_one.low <= 0.05);
  REQUIRE(of_one.high >= 0.05);
  REQUIRE(of_sum.low <= 0.05);
  REQUIRE(of_sum.high >= 0.045);
}

TEST_CASE("ten thousand clean models whose drawings are counted: alarms no more often than promised") {
  std::mt19937_64 bits(12);
  constexpr int64_t kRuns = 10000, kDrawings = 50;
  const double rate = 0.1;
  std::binomial_distribution<int64_t> coated(kDrawings, rate), clean(200, rate);
  int64_t alarms = 0, compared = 0;
  for (int64_t run = 0; run < kRuns; ++run) {
    const int64_t count = coated(bits);
    alarms += binomial_test(count, kDrawings, rate) <= 0.01;
    compared += fisher_test(count, kDrawings, clean(bits), 200) <= 0.01;
  }
  // The counts are whole: what a level of 1% amounts to is the p-value of the smallest count that reaches it.
  const double attained = binomial_test(binomial_critical_count(kDrawings, rate, 0.01), kDrawings, rate);
  const Interval of_alarms = clopper_pearson(alarms, kRuns, 0.999);
  REQUIRE(of_alarms.low <= attained);
  REQUIRE(of_alarms.high >= attained);
  REQUIRE(clopper_pearson(compared, kRuns, 0.999).low <= 0.01);
}

}  // namespace of_test_exact_tests
