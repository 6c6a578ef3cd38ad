#pragma once
// Small files of text, read whole.

#include <memsieve/detail/regular_file.h>

#include <fstream>
#include <sstream>
#include <string>

namespace memsieve::diffusion {

/// What stands in the file. E (DataError or ConfigError) naming the path if it is no regular file or cannot be opened;
/// `remedy` ends the line.
template <typename E>
std::string read_text(const std::string& path, const std::string& remedy = "see that it exists and may be read") {
  detail::require_regular_file<E>(path);
  std::ifstream file(path);
  if (!file) throw E(path + ": cannot be opened; " + remedy);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace memsieve::diffusion
