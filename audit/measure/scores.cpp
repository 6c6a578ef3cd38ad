#include <audit/measure/scores.h>
#include <audit/output/results.h>
#include <audit/statistics/bootstrap.h>
#include <audit/statistics/roc.h>
#include <memsieve/error.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

namespace memsieve::audit {

namespace {

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

struct Kind {
  const char* name;
  const char* doc;
};

constexpr Kind kKinds[] = {
    {"magnitude_first", "magnitude at the first step, mean over pictures (Wen et al.)"},
    {"magnitude_mean", "magnitude, mean over steps and pictures (Wen et al.)"},
    {"cosine",
     "cosine of the empty caption's prediction and what the caption adds, at the third-last timestep on pure "
     "noise (Asthana et al.)"},
    {"norm_and_cosine", "norm at the first timestep plus cosine_weight times the cosine (Asthana et al.)"},
    {"caption_gain", "by how much the caption lowers the error on the prompt's own picture (after CLiD)"},
};

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
  std::map<std::string, PromptMeans> means;
  for (const Kind& kind : kKinds) means.emplace(kind.name, PromptMeans(prompts));
  for (const Json& row : rows) {
    if (row.at("set") != set) continue;
    const auto prompt = row.at("prompt").get<int64_t>();
    if (row.contains("caption_gain")) means.at("caption_gain").add(prompt, row["caption_gain"].get<double>());
    if (!row.contains("magnitude")) continue;
    const auto magnitude = row["magnitude"].get<std::vector<double>>();
    means.at("magnitude_first").add(prompt, magnitude.front());
    means.at("magnitude_mean").add(prompt, mean(magnitude));
    if (!row.contains("cosine")) continue;
    const auto cosine = row["cosine"].get<double>();
    means.at("cosine").add(prompt, cosine);
    means.at("norm_and_cosine").add(prompt, row.at("norm").get<double>() + options.cosine_weight * cosine);
  }
  std::vector<PromptScore> scores;
  for (const Kind& kind : kKinds)
    if (!means.at(kind.name).empty()) scores.push_back({kind.name, kind.doc, means.at(kind.name).values(kind.name)});
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
