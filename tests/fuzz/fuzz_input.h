#pragma once
// What the fuzz targets share. A target is a function of libFuzzer's, LLVMFuzzerTestOneInput; what must hold of every
// input is said with require() and refused(), and anything that is thrown beside that counts as a crash.

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace fuzz {

using Input = FuzzedDataProvider;

inline void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "== does not hold: %s\n", what.c_str());
  std::abort();
}

/// Errors are shown to a user as they are: one line, without what a terminal obeys.
inline void require_one_line(const std::string& message) {
  require(!message.empty(), "an error says something");
  for (const char c : message)
    require(static_cast<unsigned char>(c) >= 32 && c != 127, "an error is one printable line: " + message);
}

/// Whether `read` refused what it was given, which may happen by an `E` alone.
template <class E, class Read>
bool refused(const Read& read) {
  try {
    read();
    return false;
  } catch (const E& error) {
    require_one_line(error.what());
    return true;
  }
}

inline std::string text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// 0 for most of what an input may say, or 1 ... `kinds`: how a plan leaves the beaten track. 0 without input.
inline unsigned odd(Input& input, unsigned kinds) {
  const auto byte = input.ConsumeIntegral<uint8_t>();
  return byte < 192 ? 0 : 1 + byte % kinds;
}

}  // namespace fuzz
