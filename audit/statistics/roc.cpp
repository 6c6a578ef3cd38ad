#include <audit/statistics/roc.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>

namespace memsieve::audit {

namespace {

void require_scores(const std::vector<double>& scores, const std::string& side) {
  if (scores.empty()) throw DataError(side + ": there are no scores; measure at least one");
  const auto nan = std::find_if(scores.begin(), scores.end(), [](double s) { return std::isnan(s); });
  if (nan == scores.end()) return;
  throw DataError(side + ": score " + std::to_string(nan - scores.begin()) +
                  " is NaN; find out why it was measured so, or leave it out");
}

void require(const Scores& scores) {
  require_scores(scores.positives, "positives");
  require_scores(scores.negatives, "negatives");
}

std::vector<double> descending(std::vector<double> values) {
  std::sort(values.begin(), values.end(), std::greater<>());
  return values;
}

/// Positives and negatives that score `threshold` or more.
struct Counts {
  double threshold = 0;
  int64_t positives = 0, negatives = 0;
};

std::vector<Counts> cumulative_counts(const Scores& scores) {
  const auto positives = descending(scores.positives), negatives = descending(scores.negatives);
  std::vector<Counts> out;
  size_t p = 0, n = 0;
  while (p < positives.size() || n < negatives.size()) {
    double threshold = -std::numeric_limits<double>::infinity();
    if (p < positives.size()) threshold = std::max(threshold, positives[p]);
    if (n < negatives.size()) threshold = std::max(threshold, negatives[n]);
    while (p < positives.size() && positives[p] == threshold) ++p;
    while (n < negatives.size() && negatives[n] == threshold) ++n;
    out.push_back({threshold, static_cast<int64_t>(p), static_cast<int64_t>(n)});
  }
  return out;
}

/// Whether `here` can be left out: the steps to it and from it are the same.
bool is_between(const Counts& before, const Counts& here, const Counts& after) {
  return here.positives - before.positives == after.positives - here.positives &&
         here.negatives - before.negatives == after.negatives - here.negatives;
}

}  // namespace

std::vector<RocPoint> roc_curve(const Scores& scores) {
  require(scores);
  const auto all = cumulative_counts(scores);
  const auto total_p = static_cast<double>(scores.positives.size()),
             total_n = static_cast<double>(scores.negatives.size());
  std::vector<RocPoint> points{{.threshold = std::numeric_limits<double>::infinity()}};
  for (size_t i = 0; i < all.size(); ++i) {
    if (i > 0 && i + 1 < all.size() && is_between(all[i - 1], all[i], all[i + 1])) continue;
    points.push_back({all[i].threshold, static_cast<double>(all[i].negatives) / total_n,
                      static_cast<double>(all[i].positives) / total_p});
  }
  return points;
}

double auc(const Scores& scores) {
  require(scores);
  // Twice the number of pairs, so that a tie is a whole number.
  int64_t twice = 0, above = 0, negatives = 0;
  for (const Counts& c : cumulative_counts(scores)) {
    twice += (c.negatives - negatives) * (above + c.positives);
    above = c.positives;
    negatives = c.negatives;
  }
  const auto pairs = static_cast<double>(scores.positives.size()) * static_cast<double>(scores.negatives.size());
  return static_cast<double>(twice) / (2 * pairs);
}

double true_positive_rate(const Scores& scores, double rate, RatePoint point) {
  if (!(rate > 0 && rate <= 1))
    throw DataError("false positive rate: is " + std::to_string(rate) + "; it must be above 0 and at most 1");
  double found = 0, best = std::numeric_limits<double>::infinity();
  for (const RocPoint& p : roc_curve(scores)) {
    const double distance = std::abs(p.false_positive_rate - rate);
    if (point == RatePoint::below ? p.false_positive_rate < rate : distance < best) {
      found = p.true_positive_rate;
      best = distance;
    }
  }
  return found;
}

double best_accuracy(const Scores& scores) {
  double best = 0;
  for (const RocPoint& p : roc_curve(scores))
    best = std::max(best, 1 - (p.false_positive_rate + (1 - p.true_positive_rate)) / 2);
  return best;
}

std::vector<double> p_values(const std::vector<double>& scores, const std::vector<double>& negatives) {
  require_scores(scores, "scores");
  require_scores(negatives, "negatives");
  std::vector<double> ascending = negatives, out;
  std::sort(ascending.begin(), ascending.end());
  for (const double score : scores) {
    const auto as_high = ascending.end() - std::lower_bound(ascending.begin(), ascending.end(), score);
    out.push_back(static_cast<double>(1 + as_high) / static_cast<double>(1 + ascending.size()));
  }
  return out;
}

}  // namespace memsieve::audit
