#pragma once
// From drawings to the numbers of MemBench's table (Hong et al., "MemBench", 2024).

#include <audit/output/measurements.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace memsieve::audit {

/// Levels from which a drawing counts as a copy, by what likeness is measured with.
struct CopyLevels {
  double similarity = 0.8, sscd = 0.5;
};

/// A column of the table.
struct BenchmarkColumn {
  std::string name;
  /// what it is, for the page
  std::string doc;
  /// what rows of measurements call it; of a list the first number counts
  std::string field;
  /// from a prompt's drawings to its number
  double (*of_prompt)(const std::vector<double>& values, double copy_level) = nullptr;
};

/// All that there may be: largest value, mean of the three largest (of all, if there are fewer) and share of drawings
/// at `copy_level` or above for likenesses, the mean for all else.
const std::vector<BenchmarkColumn>& benchmark_columns();

/// A number of every prompt, by column.
using PromptNumbers = std::map<std::string, std::vector<double>>;

/// In the order of `prompts`. A column is there if the first of `rows` has its field. Throws DataError for a prompt or
/// a field that is missing elsewhere, and for a value that is no number.
PromptNumbers by_prompt(const std::vector<Json>& rows, const std::vector<int64_t>& prompts, const CopyLevels& levels);

/// {"prompts", "drawings", then each column's mean over prompts with its bootstrap interval}, in the order of
/// benchmark_columns(); null for no rows. With numbers of the same prompts, drawn otherwise, in `first` also
/// "against_first": for each column that both have the mean of the prompts' differences from those.
Json benchmark_means(const PromptNumbers& numbers, int64_t drawings, const PromptNumbers* first);

}  // namespace memsieve::audit
