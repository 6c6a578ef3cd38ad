#pragma once
// From the rows of `detect` to a score for each prompt: higher = more memorised.

#include <audit/output/measurements.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::audit {

/// The mean of what is added for each prompt.
class PromptMeans {
 public:
  explicit PromptMeans(int64_t prompts) : sums_(static_cast<size_t>(prompts)), counts_(sums_.size()) {}
  void add(int64_t prompt, double value);
  /// Nothing was added.
  bool empty() const;
  /// Throws DataError, naming the prompt and `name`, if something was added for some prompts only.
  std::vector<double> values(const std::string& name) const;

 private:
  std::vector<double> sums_;
  std::vector<int64_t> counts_;
};

/// One number for each prompt.
struct PromptScore {
  std::string name;
  /// what it is, for the page
  std::string doc;
  /// in the order of the prompts
  std::vector<double> values;
};

struct ScoreOptions {
  /// gamma of the cosine beside the norm
  double cosine_weight = 2;
};

/// Scores of the set's `prompts` prompts, means over pictures: magnitude_first, magnitude_mean, and as far as they were
/// measured cosine, norm_and_cosine, attention_entropy, attention_entropy_first, bright_ending and caption_gain. Throws
/// DataError for a row that is damaged or lacks what others have.
std::vector<PromptScore> scores_of(const std::vector<Json>& rows, const std::string& set, int64_t prompts,
                                   const ScoreOptions& options);

/// What tells `positives` from `negatives` by one score: {"auc": interval, "tpr_at_fpr_1%": {"below": interval,
/// "nearest": interval}, "tpr_at_fpr_0.1%": ..., "accuracy", "positives", "negatives"}, the last two their numbers;
/// bootstrap intervals as {"estimate", "low", "high"}, from prompts drawn anew. `below` and `nearest` are the two
/// published readings of "at a rate" (RatePoint).
Json separation(const std::vector<double>& positives, const std::vector<double>& negatives);

}  // namespace memsieve::audit
