#pragma once
// How well a score separates memorised prompts or pictures (positives) from others (negatives). Larger scores are more
// memorised. Scores are compared exactly, never rounded. Every function throws DataError for a side without scores and
// for a NaN; infinite scores are in order.

#include <cstdint>
#include <vector>

namespace memsieve::audit {

struct Scores {
  std::vector<double> positives, negatives;
};

/// Everything that scores `threshold` or more is called memorised.
struct RocPoint {
  double threshold = 0;
  double false_positive_rate = 0, true_positive_rate = 0;
};

/// The points of sklearn.metrics.roc_curve, its defaults included: from (0, 0), whose threshold is infinite, to (1, 1)
/// by falling thresholds, one for each distinct score, without those between two neighbours on a straight line.
std::vector<RocPoint> roc_curve(const Scores& scores);

/// The area under that curve: the share of pairs whose positive scores higher, ties counting half (Mann and Whitney,
/// 1947). In whole numbers up to the last division.
double auc(const Scores& scores);

/// Which point of the curve stands for "at a false positive rate of r". Published figures differ in this.
enum class RatePoint {
  /// the last one strictly below r (Wen et al., ICLR 2024)
  below,
  /// the one nearest to r, the first of several, as numpy.argmin finds it (Jeon et al., Ren et al., Asthana et al.). It
  /// may lie above r; and where hardly a negative is among the positives it may be (0, 0), though the
  /// two could be told apart
  nearest,
};

/// The true positive rate there; `rate` in (0, 1]. Below one false positive in all negatives, `below` is the share of
/// positives above every negative.
double true_positive_rate(const Scores& scores, double rate, RatePoint point);

/// max over thresholds of 1 - (FPR + FNR) / 2, where both sides weigh alike (Wen's ACC).
double best_accuracy(const Scores& scores);

/// For each of `scores` the share of `negatives` and itself that score as much or more, (1 + k) / (1 + n): a valid
/// p-value of "this is one more negative", at least 1 / (1 + n).
std::vector<double> p_values(const std::vector<double>& scores, const std::vector<double>& negatives);

}  // namespace memsieve::audit
