#pragma once
// What a chunk of an HDF5 file inflates to, found out without trusting it. Private to this repository: not installed.

#include <zlib.h>

#include <array>
#include <cstdint>
#include <vector>

namespace memsieve::detail {

/// Whether the first `count` bytes are one whole zlib stream of `expected` bytes. Inflates 64 KiB at a time, and no
/// more than it must.
inline bool inflates_to(std::vector<unsigned char>& stored, uint64_t count, uint64_t expected) {
  z_stream stream{};
  if (inflateInit(&stream) != Z_OK) return false;
  stream.next_in = stored.data();
  stream.avail_in = static_cast<uInt>(count);
  std::array<unsigned char, 1 << 16> sink;
  uint64_t total = 0;
  int state = Z_OK;
  while (state == Z_OK && total <= expected) {
    stream.next_out = sink.data();
    stream.avail_out = sink.size();
    state = inflate(&stream, Z_NO_FLUSH);
    total += sink.size() - stream.avail_out;
  }
  inflateEnd(&stream);
  return state == Z_STREAM_END && total == expected;
}

}  // namespace memsieve::detail
