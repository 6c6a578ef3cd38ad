#pragma once
// What every room asks before it opens a path. Private to this repository: it is not installed.

#include <filesystem>
#include <string>
#include <system_error>

namespace memsieve::detail {

/// Throws `E` if something stands at `path` (symbolic links followed) that is no regular file. To be called before the
/// file is opened: opening a pipe waits for its other end, and opening a device may do anything. Nothing there, or
/// nothing that may be looked at, passes: opening says it better.
template <class E>
void require_regular_file(const std::string& path) {
  const auto refuse = [&](const char* kind) {
    throw E(path + ": is not a file but " + kind + "; name a regular file");
  };
  std::error_code error;
  switch (std::filesystem::status(path, error).type()) {
    case std::filesystem::file_type::directory:
      return refuse("a folder");
    case std::filesystem::file_type::fifo:
      return refuse("a pipe");
    case std::filesystem::file_type::socket:
      return refuse("a socket");
    case std::filesystem::file_type::block:
    case std::filesystem::file_type::character:
      return refuse("a device");
    default:
      return;
  }
}

}  // namespace memsieve::detail
