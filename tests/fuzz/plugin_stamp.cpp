// The stamp of a plug-in, read from an ELF file before any of its code runs.
#include <config/plugin_file.h>

#include <cstring>

#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t from = 0;
  const auto read = [&](uint64_t offset, uint64_t count, void* to) {
    if (offset > size || count > size - offset) return false;
    std::memcpy(to, data + offset, count);
    from = offset;
    return true;
  };
  const auto stamp = memsieve::find_stamp(read);
  if (stamp) fuzz::require(std::memcmp(data + from, &*stamp, sizeof *stamp) == 0, "the stamp is what the file holds");
  return 0;
}
