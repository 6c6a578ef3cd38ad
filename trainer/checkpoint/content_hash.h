#pragma once
// What tells a file that was damaged at rest from a sound one.

#include <cstdint>
#include <string>

namespace memsieve::trainer {

/// CRC-32 (zlib's) of a file's bytes, as eight hexadecimal digits; read by as many threads as torch has.
/// Throws std::system_error.
std::string content_hash(const std::string& path);

/// The same of a text.
std::string text_hash(const std::string& text);

}  // namespace memsieve::trainer
