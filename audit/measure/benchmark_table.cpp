#include <audit/measure/benchmark_table.h>
#include <audit/output/results.h>
#include <audit/statistics/bootstrap.h>
#include <audit/statistics/descriptive.h>
#include <memsieve/error.h>

#include <algorithm>
#include <functional>

namespace memsieve::audit {

namespace {

/// Of the highest values those that MemBench averages.
constexpr size_t kTop = 3;

double largest(const std::vector<double>& values, double) {
  return *std::max_element(values.begin(), values.end());
}

double mean_of(const std::vector<double>& values, double) {
  return mean(values);
}

double mean_of_top(const std::vector<double>& values, double) {
  std::vector<double> ordered = values;
  std::sort(ordered.begin(), ordered.end(), std::greater<>());
  ordered.resize(std::min(kTop, ordered.size()));
  return mean(ordered);
}

double copied_share(const std::vector<double>& values, double copy_level) {
  return static_cast<double>(count_at_least(values, copy_level)) / static_cast<double>(values.size());
}

double value_of(const Json& row, const std::string& field) {
  if (!row.contains(field))
    throw DataError("measurements.jsonl: " + row.at("unit").get<std::string>() + " has no " + field +
                    ", but others do; remove the file and measure again");
  const Json& value = row[field];
  return (value.is_array() ? value.at(0) : value).get<double>();
}

}  // namespace

const std::vector<BenchmarkColumn>& benchmark_columns() {
  static const std::vector<BenchmarkColumn> all = {
      {"sscd_max", "SSCD likeness to the original, largest of a prompt's drawings", "sscd", largest},
      {"sscd_top3", "mean of a prompt's three largest", "sscd", mean_of_top},
      {"sscd_share", "share of drawings that SSCD calls copies", "sscd", copied_share},
      {"similarity_max", "correlation with the original, largest of a prompt's drawings", "similarity", largest},
      {"similarity_top3", "mean of a prompt's three largest", "similarity", mean_of_top},
      {"similarity_share", "share of drawings that correlation calls copies", "similarity", copied_share},
      {"clip", "alignment of drawing and prompt: cosine of the features of CLIP, or of what was named in its place",
       "clip", mean_of},
      {"aesthetic", "aesthetic score", "aesthetic", mean_of},
      {"similarity_to_plain", "correlation with the plain drawing from the same noise", "similarity_to_plain", mean_of},
      {"magnitude_first", "magnitude at the first step", "magnitude", mean_of},
  };
  return all;
}

PromptNumbers by_prompt(const std::vector<Json>& rows, const std::vector<int64_t>& prompts, const CopyLevels& levels) {
  PromptNumbers found;
  if (rows.empty()) return found;
  for (const BenchmarkColumn& column : benchmark_columns()) {
    if (!rows.front().contains(column.field)) continue;
    std::map<int64_t, std::vector<double>> values;
    read_rows(rows,
              [&](const Json& row) { values[row.at("prompt").get<int64_t>()].push_back(value_of(row, column.field)); });
    const double level = column.field == "sscd" ? levels.sscd : levels.similarity;
    for (const int64_t prompt : prompts) {
      const auto of_prompt = values.find(prompt);
      if (of_prompt == values.end())
        throw DataError("measurements.jsonl: prompt " + std::to_string(prompt) +
                        " has no drawings, but others do; remove the file and measure again");
      found[column.name].push_back(column.of_prompt(of_prompt->second, level));
    }
  }
  return found;
}

Json benchmark_means(const PromptNumbers& numbers, int64_t drawings, const PromptNumbers* first) {
  if (numbers.empty()) return nullptr;
  Json means{{"prompts", numbers.begin()->second.size()}, {"drawings", drawings}};
  Json differences = Json::object();
  for (const BenchmarkColumn& column : benchmark_columns()) {
    const auto found = numbers.find(column.name);
    if (found == numbers.end()) continue;
    means[column.name] = as_json(bootstrap_mean(found->second));
    if (first == nullptr || first->count(column.name) == 0) continue;
    std::vector<double> difference = found->second;
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= first->at(column.name).at(i);
    differences[column.name] = as_json(bootstrap_mean(difference));
  }
  if (first != nullptr) means["against_first"] = std::move(differences);
  return means;
}

}  // namespace memsieve::audit
