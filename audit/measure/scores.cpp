#include <audit/measure/scores.h>
#include <audit/output/results.h>
#include <audit/statistics/bootstrap.h>
#include <audit/statistics/descriptive.h>
#include <audit/statistics/roc.h>
#include <memsieve/error.h>

#include <algorithm>
#include <functional>
#include <optional>

namespace memsieve::audit {

namespace {

std::optional<double> number_in(const Json& row, const char* key) {
  return row.contains(key) ? std::optional(row[key].get<double>()) : std::nullopt;
}
std::optional<double> first_in(const Json& row, const char* key) {
  return row.contains(key) ? std::optional(row[key].at(0).get<double>()) : std::nullopt;
}
std::optional<double> mean_in(const Json& row, const char* key) {
  if (!row.contains(key)) return std::nullopt;
  return mean(row[key].get<std::vector<double>>());
}

struct Kind {
  const char* name;
  const char* doc;
  /// of a row, if that has what it takes
  std::optional<double> (*of)(const Json& row, const ScoreOptions& options);
};

const std::vector<Kind>& kinds() {
  using Options = const ScoreOptions&;
  static const std::vector<Kind> all = {
      {"magnitude_first", "magnitude at the first step, mean over pictures (Wen et al.)",
       [](const Json& row, Options) { return first_in(row, "magnitude"); }},
      {"magnitude_mean", "magnitude, mean over steps and pictures (Wen et al.)",
       [](const Json& row, Options) { return mean_in(row, "magnitude"); }},
      {"cosine",
       "cosine of the empty caption's prediction and what the caption adds, at the third-last timestep on pure "
       "noise (Asthana et al.)",
       [](const Json& row, Options) { return number_in(row, "cosine"); }},
      {"norm_and_cosine", "norm at the first timestep plus cosine_weight times the cosine (Asthana et al.)",
       [](const Json& row, Options options) {
         const auto norm = number_in(row, "norm"), cosine = number_in(row, "cosine");
         return norm && cosine ? std::optional(*norm + options.cosine_weight * *cosine) : std::nullopt;
       }},
      {"attention_entropy",
       "entropy of the attention to the tokens in the last ten steps, plus the rise of its part from the end token on "
       "since the first (Ren et al., D)",
       [](const Json& row, Options) { return number_in(row, "attention_entropy"); }},
      {"attention_entropy_first", "the entropy at the first step in the fourth layer (Ren et al., E)",
       [](const Json& row, Options) { return number_in(row, "attention_entropy_first"); }},
      {"bright_ending",
       "magnitude where the last step looks at the end token, over that look's mean; mean over steps (Bright Ending, "
       "Chen et al.)",
       [](const Json& row, Options) { return mean_in(row, "masked_magnitude"); }},
      {"caption_gain", "by how much the caption lowers the error on the prompt's own picture (after CLiD)",
       [](const Json& row, Options) { return number_in(row, "caption_gain"); }},
  };
  return all;
}

}  // namespace

void PromptMeans::add(int64_t prompt, double value) {
  sums_.at(static_cast<size_t>(prompt)) += value;
  counts_.at(static_cast<size_t>(prompt)) += 1;
}

bool PromptMeans::empty() const {
  return std::all_of(counts_.begin(), counts_.end(), [](int64_t n) { return n == 0; });
}

std::vector<double> PromptMeans::values(const std::string& name) const {
  std::vector<double> means;
  for (size_t i = 0; i < sums_.size(); ++i) {
    if (counts_[i] == 0)
      throw DataError("measurements.jsonl: prompt " + std::to_string(i) + " has no " + name +
                      ", but others do; remove the file and measure again");
    means.push_back(sums_[i] / static_cast<double>(counts_[i]));
  }
  return means;
}

std::vector<PromptScore> scores_of(const std::vector<Json>& rows, const std::string& set, int64_t prompts,
                                   const ScoreOptions& options) {
  std::vector<PromptMeans> means(kinds().size(), PromptMeans(prompts));
  read_rows(rows, [&](const Json& row) {
    if (row.at("set") != set) return;
    const auto prompt = row.at("prompt").get<int64_t>();
    for (size_t i = 0; i < kinds().size(); ++i)
      if (const auto value = kinds()[i].of(row, options)) means[i].add(prompt, *value);
  });
  std::vector<PromptScore> scores;
  for (size_t i = 0; i < kinds().size(); ++i) {
    const Kind& kind = kinds()[i];
    if (!means[i].empty()) scores.push_back({kind.name, kind.doc, means[i].values(kind.name)});
  }
  return scores;
}

Json separation(const std::vector<double>& positives, const std::vector<double>& negatives) {
  const Scores scores{positives, negatives};
  const auto interval = [&](const std::function<double(const Scores&)>& measure) {
    return as_json(bootstrap(scores, measure));
  };
  const auto rates = [&](double rate) {
    const auto at = [rate](RatePoint point) {
      return [rate, point](const Scores& s) { return true_positive_rate(s, rate, point); };
    };
    return Json{{"below", interval(at(RatePoint::below))}, {"nearest", interval(at(RatePoint::nearest))}};
  };
  return {{"auc", interval(auc)},
          {"tpr_at_fpr_1%", rates(0.01)},
          {"tpr_at_fpr_0.1%", rates(0.001)},
          {"accuracy", best_accuracy(scores)},
          {"positives", positives.size()},
          {"negatives", negatives.size()}};
}

}  // namespace memsieve::audit
