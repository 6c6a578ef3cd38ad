#include <memsieve/error.h>
#include <diffusion/models/vae/vae_decoder.h>
#include <support/files.h>
#include <support/message_of.h>

namespace of_test_vae_config {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Matchers::Contains;
using memsieve::ConfigError;

TEST_CASE("vae config: a model that cannot be had is refused before any of it is allocated") {
  const TemporaryFolder folder;
  const std::string path = folder.file("config.json");
  const auto error_of = [&](const std::string& json) {
    write_file(path, json);
    const std::string message = message_of<ConfigError>([&] { read_vae_config(path); });
    CHECK_THAT(message, Catch::Matchers::StartsWith(path + ": "));
    return message;
  };
  const std::string one = R"("up_block_types": ["UpDecoderBlock2D"])", cannot = "asks for a model of at least ";
  CHECK_THAT(error_of("{" + one + R"(, "block_out_channels": [65536], "layers_per_block": 2})"), Contains(cannot));
  CHECK_THAT(error_of("{" + one + R"(, "block_out_channels": [32], "latent_channels": 65536, "layers_per_block": 65})"),
             Contains("layers_per_block: 65: must be at most 64"));
  std::string levels;
  for (int i = 0; i < 5000; ++i) levels += ",32";
  const std::string many = error_of("{" + one + R"(, "block_out_channels": [32)" + levels + "]}");
  CHECK_THAT(many, Contains("block_out_channels: must name 1 to 16 levels"));
  CHECK(many.size() < 200);
}

}  // namespace of_test_vae_config
