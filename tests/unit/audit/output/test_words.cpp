// Words in the terminal.
#include <audit/output/words.h>

#include <catch2/catch.hpp>

namespace of_test_words {

using namespace memsieve::audit;

TEST_CASE("without colour words carry their share of the heaviest") {
  CHECK(weighed_line({{"a ", 0.5}, {"ca", 2}, {"t ", 1}}, false) == "a 25% ca 100% t 50%");
  CHECK(weighed_line({{"a ", 0}}, false) == "a 0%");
}

TEST_CASE("with colour the text is the caption once the colours are taken out") {
  std::string line = weighed_line({{"a ", 0.1}, {"ca", 2}, {"t ", 1}}, true);
  CHECK(line.find("48;5;196m"
                  "ca") != std::string::npos);
  for (size_t at = line.find('\033'); at != std::string::npos; at = line.find('\033'))
    line.erase(at, line.find('m', at) - at + 1);
  CHECK(line == "a cat");
}

}  // namespace of_test_words
