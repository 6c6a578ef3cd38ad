// The config.json of a UNet.
#include <diffusion/models/unet/unet_config.h>
#include <memsieve/error.h>

#include "fuzz_input.h"

using memsieve::ConfigError;
using memsieve::diffusion::UNetConfig;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  UNetConfig config;
  const auto parse = [&] { config = memsieve::diffusion::parse_unet_config(fuzz::text_of(data, size), "config.json"); };
  if (fuzz::refused<ConfigError>(parse)) return 0;
  const std::string json = to_json(config);
  fuzz::require(to_json(memsieve::diffusion::parse_unet_config(json, "config.json")) == json,
                "what is written is read back:\n" + json);
  return 0;
}
