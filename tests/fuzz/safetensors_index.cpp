// The index of a model in several safetensors files.
#include <diffusion/io/safetensors_index.h>
#include <memsieve/error.h>

#include <filesystem>

#include "fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::refused<memsieve::DataError>([&] {
    for (const auto& name : memsieve::diffusion::parse_safetensors_index(fuzz::text_of(data, size), "index.json"))
      fuzz::require(std::filesystem::path("folder") / name == std::filesystem::path("folder/" + name) &&
                        !std::filesystem::path(name).has_parent_path() && name.find('\0') == std::string::npos,
                    "a shard lies in the folder itself: " + name);
  });
  return 0;
}
