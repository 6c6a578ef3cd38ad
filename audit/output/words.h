#pragma once
// A caption's words in the terminal, coloured by how much they matter.

#include <string>
#include <vector>

namespace memsieve::audit {

struct WeighedWord {
  /// as it stands in the caption, with the space behind it
  std::string word;
  /// 0 or more
  double weight = 0;
};

/// The words on one line, on a ground from pale to red, the heaviest reddest; without colour each with its share of
/// the heaviest in percent: "a 3% cat 100%".
std::string weighed_line(const std::vector<WeighedWord>& words, bool colour);

}  // namespace memsieve::audit
