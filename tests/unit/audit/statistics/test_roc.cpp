// ROC figures against scikit-learn and against their definitions.
#include <audit/statistics/bootstrap.h>
#include <audit/statistics/roc.h>
#include <memsieve/error.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <utility>

namespace of_test_roc {

using namespace memsieve;
using namespace memsieve::audit;

namespace {

/// Whole numbers, so with many ties: 60 positives in 10..49 and 150 negatives in 0..39, from the generator
/// x -> (1103515245 x + 12345) mod 2^31.
Scores example() {
  uint64_t x = 1;
  const auto next = [&] {
    x = (1103515245 * x + 12345) % (uint64_t{1} << 31);
    return static_cast<double>((x >> 16) % 40);
  };
  Scores out;
  for (int i = 0; i < 60; ++i) out.positives.push_back(next() + 10);
  for (int i = 0; i < 150; ++i) out.negatives.push_back(next());
  return out;
}

double share_of_pairs(const Scores& scores) {
  double sum = 0;
  for (const double p : scores.positives)
    for (const double n : scores.negatives) sum += p > n ? 1 : p == n ? 0.5 : 0;
  return sum / static_cast<double>(scores.positives.size() * scores.negatives.size());
}

}  // namespace

TEST_CASE("the curve is scikit-learn's") {
  // sklearn 1.9: roc_curve(labels, scores), roc_auc_score, tpr[where(fpr < r)[0][-1]], tpr[argmin(abs(fpr - r))]
  const Scores scores = example();
  const auto curve = roc_curve(scores);
  REQUIRE(curve.size() == 43);
  REQUIRE(auc(scores) == Approx(0.6795555555555556).margin(1e-14));
  REQUIRE(curve.front().threshold == std::numeric_limits<double>::infinity());
  REQUIRE(curve.back().threshold == 0.0);
  double fpr_sum = 0, tpr_sum = 0;
  for (const auto& point : curve) {
    fpr_sum += point.false_positive_rate;
    tpr_sum += point.true_positive_rate;
  }
  REQUIRE(fpr_sum == Approx(18.74).margin(1e-12));
  REQUIRE(tpr_sum == Approx(26.1).margin(1e-12));
  REQUIRE(true_positive_rate(scores, 0.01, RatePoint::below) == Approx(0.18333333333333332).margin(1e-14));
  REQUIRE(true_positive_rate(scores, 0.01, RatePoint::nearest) == Approx(0.0).margin(1e-14));
  REQUIRE(true_positive_rate(scores, 0.05, RatePoint::below) == Approx(0.23333333333333334).margin(1e-14));
  REQUIRE(true_positive_rate(scores, 0.05, RatePoint::nearest) == Approx(0.23333333333333334).margin(1e-14));
  REQUIRE(best_accuracy(scores) == Approx(0.6366666666666667).margin(1e-14));
}

TEST_CASE("the two conventions, by hand") {
  Scores scores;  // positive i scores less than i negatives
  for (int i = 0; i < 10; ++i) scores.positives.push_back(1.0 - 2.0 * i);
  const auto rates = [&](int negatives, double rate) {
    scores.negatives.clear();
    for (int i = 0; i < negatives; ++i) scores.negatives.push_back(-2.0 * i);
    return std::pair{true_positive_rate(scores, rate, RatePoint::below),
                     true_positive_rate(scores, rate, RatePoint::nearest)};
  };
  // 1% of 500 are 5: strictly below are 4, then come 5 positives; the nearest is 5, first with those same positives.
  REQUIRE(rates(500, 0.01) == std::pair{0.5, 0.5});
  REQUIRE(rates(500, 0.0119) == std::pair{0.6, 0.6});
  // 1 of 130 is below 1% and nearest to it: the last point there has 2 positives, the first has 1.
  REQUIRE(rates(130, 0.01) == std::pair{0.2, 0.1});
  // Fewer negatives than the rate needs: `below` is the share above all of them, `nearest` may be (0, 0).
  REQUIRE(rates(50, 0.001) == std::pair{0.1, 0.0});
  REQUIRE(rates(50, 0.019) == std::pair{0.1, 0.1});
}

TEST_CASE("the area is the share of pairs in order, and that under the curve") {
  const Scores scores = example();
  REQUIRE(auc(scores) == Approx(share_of_pairs(scores)).margin(1e-14));
  const auto curve = roc_curve(scores);
  double area = 0;
  for (size_t i = 1; i < curve.size(); ++i)
    area += (curve[i].false_positive_rate - curve[i - 1].false_positive_rate) *
            (curve[i].true_positive_rate + curve[i - 1].true_positive_rate) / 2;
  REQUIRE(area == Approx(auc(scores)).margin(1e-12));
  REQUIRE(auc({scores.negatives, scores.positives}) == Approx(1 - auc(scores)).margin(1e-14));
}

TEST_CASE("only the order of scores counts") {
  const Scores scores = example();
  Scores mapped = scores;
  for (auto* side : {&mapped.positives, &mapped.negatives})
    for (double& s : *side) s = std::exp(s / 7) - 3;
  REQUIRE(auc(mapped) == auc(scores));
  REQUIRE(best_accuracy(mapped) == best_accuracy(scores));
  for (const auto point : {RatePoint::below, RatePoint::nearest})
    for (const double rate : {0.001, 0.01, 0.1, 1.0})
      REQUIRE(true_positive_rate(mapped, rate, point) == true_positive_rate(scores, rate, point));
}

TEST_CASE("scores that separate, and scores that say nothing") {
  const Scores apart{{3, 4}, {1, 2}}, same{{1, 1, 1}, {1, 1}};
  REQUIRE(auc(apart) == 1);
  REQUIRE(best_accuracy(apart) == 1);
  REQUIRE(true_positive_rate(apart, 0.01, RatePoint::below) == 1);
  // At a distance of 0.01 there is (0, 0) first: what published code prints for a rate that is nearest to 0.
  REQUIRE(true_positive_rate(apart, 0.01, RatePoint::nearest) == 0);
  REQUIRE(auc(same) == 0.5);
  REQUIRE(best_accuracy(same) == 0.5);
  REQUIRE(true_positive_rate(same, 0.5, RatePoint::below) == 0);
}

TEST_CASE("p-values from negatives hold their level") {
  const auto p = p_values({0, 5, 5.5, 100}, {1, 2, 5, 5, 9});
  REQUIRE(p == std::vector<double>{1, 4.0 / 6, 2.0 / 6, 1.0 / 6});
  // One more negative is equally likely to be any of n + 1: P(p <= k / (n + 1)) = k / (n + 1).
  const std::vector<double> all{7, 3, 8, 1, 9, 4};
  std::vector<double> found;
  for (size_t i = 0; i < all.size(); ++i) {
    auto others = all;
    others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
    found.push_back(p_values({all[i]}, others)[0]);
  }
  std::sort(found.begin(), found.end());
  for (size_t i = 0; i < found.size(); ++i) REQUIRE(found[i] == Approx(static_cast<double>(i + 1) / 6));
}

TEST_CASE("what is no score is refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  REQUIRE_THROWS_AS(auc({{}, {1}}), DataError);
  REQUIRE_THROWS_AS(auc({{1}, {}}), DataError);
  REQUIRE_THROWS_WITH(auc({{1, nan}, {1}}), Catch::Contains("positives: score 1 is NaN"));
  REQUIRE_THROWS_AS(true_positive_rate({{1}, {0}}, 0, RatePoint::below), DataError);
  REQUIRE(auc({{std::numeric_limits<double>::infinity()}, {1}}) == 1);
}

TEST_CASE("a bootstrap interval is reproducible, and about as wide as theory says") {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(std::sin(1.0 + 3.7 * i));
  // Of one side alone, for which theory has an interval.
  const Scores scores{.positives = values, .negatives = {0}};
  const auto mean = [](const Scores& s) {
    double sum = 0;
    for (const double x : s.positives) sum += x;
    return sum / static_cast<double>(s.positives.size());
  };
  const Interval once = bootstrap(scores, mean, {.seed = 3}), again = bootstrap(scores, mean, {.seed = 3}),
                 other = bootstrap(scores, mean, {.seed = 4}), student = mean_interval(values);
  REQUIRE(once.low == again.low);
  REQUIRE(once.high == again.high);
  REQUIRE(once.low != other.low);
  REQUIRE(once.estimate == mean(scores));
  REQUIRE(once.low == Approx(student.low).margin(0.1 * (student.high - student.low)));
  REQUIRE(once.high == Approx(student.high).margin(0.1 * (student.high - student.low)));
  const Interval narrow = bootstrap(scores, mean, {.level = 0.5, .seed = 3});
  REQUIRE(narrow.high - narrow.low < 0.5 * (once.high - once.low));
}

TEST_CASE("the bootstrap of a mean is about as wide as Student's interval") {
  std::vector<double> values;
  for (int i = 0; i < 400; ++i) values.push_back(std::sin(1.0 + 3.7 * i));
  const Interval found = bootstrap_mean(values, {.seed = 3}), student = mean_interval(values);
  REQUIRE(found.estimate == Approx(student.estimate));
  REQUIRE(found.low == Approx(student.low).margin(0.1 * (student.high - student.low)));
  REQUIRE(found.high == Approx(student.high).margin(0.1 * (student.high - student.low)));
  const Interval one = bootstrap_mean({2.5});
  REQUIRE((one.low == 2.5 && one.high == 2.5));
  REQUIRE_THROWS_AS(bootstrap_mean({}), DataError);
  REQUIRE_THROWS_AS(bootstrap_mean({1, std::nan("")}), DataError);
}

TEST_CASE("the bootstrap of the area agrees with Hanley and McNeil's standard error") {
  // "The meaning and use of the area under a ROC curve", Radiology 1982, with Q1 and Q2 counted.
  const Scores scores = example();
  const double a = auc(scores), m = 60, n = 150;
  double q1 = 0, q2 = 0;
  for (const double neg : scores.negatives) {
    double above = 0;
    for (const double pos : scores.positives) above += pos > neg ? 1 : pos == neg ? 0.5 : 0;
    q1 += (above / m) * (above / m) / n;
  }
  for (const double pos : scores.positives) {
    double below = 0;
    for (const double neg : scores.negatives) below += pos > neg ? 1 : pos == neg ? 0.5 : 0;
    q2 += (below / n) * (below / n) / m;
  }
  const double error = std::sqrt((a * (1 - a) + (m - 1) * (q2 - a * a) + (n - 1) * (q1 - a * a)) / (m * n));
  const auto area = [](const Scores& s) { return auc(s); };
  const Interval interval = bootstrap(scores, area, {.resamples = 1000, .seed = 1});
  REQUIRE(interval.low < a);
  REQUIRE(interval.high > a);
  REQUIRE((interval.high - interval.low) / (2 * 1.96 * error) == Approx(1).margin(0.15));
}

TEST_CASE("quantiles are numpy's") {
  REQUIRE(quantile({4, 1, 3, 2}, 0.5) == Approx(2.5));
  REQUIRE(quantile({4, 1, 3, 2}, 0.1) == Approx(1.3));
  REQUIRE(quantile({4, 1, 3, 2}, 1) == 4);
  REQUIRE(quantile({7}, 0.3) == 7);
}

}  // namespace of_test_roc
