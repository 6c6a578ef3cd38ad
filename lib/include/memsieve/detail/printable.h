#pragma once
// What somebody else's file says, in our messages. Private to this repository: it is not installed.

#include <algorithm>
#include <cstddef>
#include <string>

namespace memsieve::detail {

/// Text for an error's one line: control characters as '?', cut after `most` bytes.
inline std::string printable(const std::string& text, size_t most = 200) {
  std::string out = text.substr(0, most);
  std::replace_if(
      out.begin(), out.end(), [](char c) { return static_cast<unsigned char>(c) < 32 || c == 127; }, '?');
  return out + (text.size() > out.size() ? "..." : "");
}

inline std::string in_quotes(const std::string& text) {
  return std::string("'").append(printable(text)).append("'");
}

}  // namespace memsieve::detail
