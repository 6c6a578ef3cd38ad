#include <audit/output/words.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace memsieve::audit {

namespace {

/// Of xterm's 256 colours, from pale to red.
constexpr std::array<int, 6> kGrounds{230, 223, 216, 209, 203, 196};

}  // namespace

std::string weighed_line(const std::vector<WeighedWord>& words, bool colour) {
  double heaviest = 0;
  for (const auto& word : words) heaviest = std::max(heaviest, word.weight);
  std::string line;
  for (const auto& [word, weight] : words) {
    const double share = heaviest > 0 ? weight / heaviest : 0;
    const bool spaced = !word.empty() && word.back() == ' ';
    const std::string bare = word.substr(0, word.size() - (spaced ? 1 : 0));
    if (colour) {
      const auto ground = static_cast<size_t>(share * static_cast<double>(kGrounds.size()));
      const int number = kGrounds.at(std::min(ground, kGrounds.size() - 1));
      line += "\033[30;48;5;" + std::to_string(number) + "m" + bare + "\033[0m" + (spaced ? " " : "");
    } else {
      line += bare + " " + std::to_string(std::lround(100 * share)) + "% ";
    }
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

}  // namespace memsieve::audit
