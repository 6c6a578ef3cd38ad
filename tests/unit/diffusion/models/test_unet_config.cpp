#include <memsieve/error.h>
#include <diffusion/models/unet/unet_config.h>

#include <support/message_of.h>

namespace of_test_unet_config {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Matchers::Contains;
using memsieve::ConfigError;

namespace {

std::string error_of(const std::string& json) {
  const std::string message = message_of<ConfigError>([&] { parse_unet_config(json, "some/config.json"); });
  CHECK_THAT(message, Catch::Matchers::StartsWith("some/config.json: "));
  return message;
}

}  // namespace

TEST_CASE("unet config: numbers become one entry per level, lists stay") {
  const UNetConfig c = parse_unet_config(R"({
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2", "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 3, "attention_head_dim": [2, 4], "cross_attention_dim": 24, "sample_size": [8, 12],
    "encoder_hid_dim": 10, "encoder_hid_dim_type": "text_proj", "class_embed_type": null, "act_fn": "silu"})",
                                         "x");
  CHECK(c.layers_per_block == std::vector<int64_t>{3, 3});
  CHECK(c.attention_head_dim == std::vector<int64_t>{2, 4});
  CHECK(c.transformer_layers_per_block == std::vector<int64_t>{1, 1});
  CHECK(c.sample_size == std::vector<int64_t>{8, 12});
  CHECK(c.text_dim() == 10);
  CHECK(c.time_embed_dim() == 128);
  CHECK(c.in_channels == 4);
  CHECK(to_json(parse_unet_config(to_json(c), "again")) == to_json(c));
}

TEST_CASE("unet config: an empty object is diffusers' default model") {
  const UNetConfig c = parse_unet_config("{}", "x");
  CHECK(to_json(c) == to_json(UNetConfig{}));
  CHECK(c.block_out_channels == std::vector<int64_t>{320, 640, 1280, 1280});
}

TEST_CASE("unet config: SDXL's keys") {
  const UNetConfig c = parse_unet_config(R"({"addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "upcast_attention": null})",
                                         "x");
  CHECK(c.has_text_time());
  CHECK(c.pooled_dim() == 1280);
  CHECK(c.pooled_dim(5) == 1536);
  CHECK_FALSE(c.upcast_attention);
  CHECK(to_json(parse_unet_config(to_json(c), "again")) == to_json(c));
  CHECK_FALSE(UNetConfig{}.has_text_time());
  CHECK(UNetConfig{}.pooled_dim() == 0);
}

TEST_CASE("unet config: what cannot be built is named with file, key and value") {
  CHECK_THAT(error_of("[1]"), Contains("not a JSON object"));
  CHECK_THAT(error_of("{"), Contains("not a JSON object"));
  CHECK_THAT(error_of(R"({"_class_name": "AutoencoderKL"})"), Contains("AutoencoderKL"));
  CHECK_THAT(error_of(R"({"channels": 3})"), Contains("channels: 3: unknown key"));
  CHECK_THAT(error_of(R"({"a\nb": "\u007f"})"), Contains("a?b: \"?\": unknown key"));
  CHECK_THAT(error_of(R"({"class_embed_type": "timestep"})"), Contains("class_embed_type: \"timestep\""));
  CHECK_THAT(error_of(R"({"addition_embed_type": "text_image"})"), Contains("addition_embed_type: \"text_image\""));
  CHECK_THAT(error_of(R"({"addition_embed_type": "text_time", "addition_time_embed_dim": 8})"),
             Contains("projection_class_embeddings_input_dim: null: must be given"));
  CHECK_THAT(error_of(R"({"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
                          "projection_class_embeddings_input_dim": 8})"),
             Contains("projection_class_embeddings_input_dim: 8: must be above addition_time_embed_dim, 8"));
  CHECK_THAT(error_of(R"({"addition_time_embed_dim": 8})"),
             Contains("addition_time_embed_dim: 8: not supported unless"));
  CHECK_THAT(error_of(R"({"mid_block_type": null})"), Contains("mid_block_type: null"));
  CHECK_THAT(error_of(R"({"in_channels": 9223372036854775808})"), Contains("in_channels"));
  CHECK_THAT(error_of("{\"surprise\": \"\xff\"}"), Contains("not a JSON object"));
  CHECK_THAT(error_of(R"({"act_fn": "gelu"})"), Contains("must be \"silu\""));
  CHECK_THAT(error_of(R"({"dropout": 0.5})"), Contains("dropout: 0.5"));
  CHECK_THAT(error_of(R"({"num_attention_heads": 8})"), Contains("num_attention_heads: 8"));
  CHECK_THAT(error_of(R"({"in_channels": "4"})"), Contains("in_channels: \"4\": must be an integer"));
  CHECK_THAT(error_of(R"({"in_channels": 0})"), Contains("in_channels: 0"));
  CHECK_THAT(error_of(R"({"flip_sin_to_cos": 1})"), Contains("flip_sin_to_cos: 1"));
  CHECK_THAT(error_of(R"({"norm_eps": "small"})"), Contains("norm_eps"));
  CHECK_THAT(error_of(R"({"block_out_channels": []})"), Contains("block_out_channels"));
  CHECK_THAT(error_of(R"({"block_out_channels": 320})"), Contains("block_out_channels: 320: must be a list"));
  CHECK_THAT(error_of(R"({"block_out_channels": [320, 640]})"), Contains("down_block_types"));
  CHECK_THAT(error_of(R"({"block_out_channels": [32, 64, 100, 128]})"), Contains("norm_num_groups, 32"));
  CHECK_THAT(error_of(R"({"norm_num_groups": 0})"), Contains("norm_num_groups: 0"));
  CHECK_THAT(error_of(R"({"attention_head_dim": 7})"), Contains("number of heads"));
  CHECK_THAT(error_of(R"({"attention_head_dim": [8, 8]})"),
             Contains("attention_head_dim: [8,8]: must be a number or 4"));
  CHECK_THAT(error_of(R"({"layers_per_block": [2, 2, 0, 2]})"), Contains("layers_per_block"));
  CHECK_THAT(error_of(R"({"cross_attention_dim": [768, 768, 768, 1280]})"), Contains("must be one number"));
  CHECK_THAT(error_of(R"({"transformer_layers_per_block": [1, [1, 2], 1, 1]})"),
             Contains("transformer_layers_per_block"));
  CHECK_THAT(error_of(R"({"encoder_hid_dim": 8, "encoder_hid_dim_type": "image_proj"})"), Contains("image_proj"));
  CHECK_THAT(error_of(R"({"encoder_hid_dim_type": "text_proj"})"), Contains("encoder_hid_dim"));
  CHECK_THAT(error_of(R"({"conv_in_kernel": 4})"), Contains("conv_in_kernel: 4: must be odd"));
  CHECK_THAT(error_of(R"({"mid_block_type": "UNetMidBlock2D"})"), Contains("mid_block_type"));
  CHECK_THAT(error_of(R"({"up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]})"),
             Contains("up_block_types: \"AttnUpBlock2D\""));
  CHECK_THAT(error_of(R"({"sample_size": [8, 8, 8]})"), Contains("sample_size"));
  for (const char* key : {"layers_per_block", "transformer_layers_per_block"})
    CHECK_THAT(error_of("{\"" + std::string(key) + "\": 65536}"), Contains(key) && Contains("must be at most 64"));
  CHECK_THAT(message_of<ConfigError>([] { read_unet_config("/nonexistent/config.json"); }),
             Contains("/nonexistent/config.json: cannot be opened"));
}

TEST_CASE("unet config: a model that cannot be had is refused before any of it is allocated") {
  std::string levels, types;
  for (int i = 0; i < 65536; ++i) levels += ",32", types += ",\"DownBlock2D\"";
  const std::string many =
      error_of("{\"block_out_channels\": [32" + levels + "], \"down_block_types\": [\"DownBlock2D\"" + types +
               "], \"up_block_types\": [\"UpBlock2D\"]}");
  CHECK_THAT(many, Contains("block_out_channels: names 65537 levels; at most 16"));
  CHECK(many.size() < 200);
  const std::string cannot = "asks for a model of at least ";
  CHECK_THAT(error_of(R"({"block_out_channels": [65536, 65536, 65536, 65536]})"), Contains(cannot));
  CHECK_THAT(error_of(R"({"in_channels": 65536, "conv_in_kernel": 65535})"), Contains(cannot));
  CHECK_THAT(error_of(R"({"conv_out_kernel": 65535, "out_channels": 65536})"), Contains(cannot));
  CHECK_THAT(error_of(R"({"block_out_channels": [8192, 8192, 8192, 8192], "transformer_layers_per_block": 64})"),
             Contains(cannot));
  // As wide as any that is trained: SDXL's, twice over.
  CHECK(parse_unet_config(R"({"block_out_channels": [640, 1280, 2560, 2560], "transformer_layers_per_block": 10,
                             "cross_attention_dim": 2048, "attention_head_dim": 20})",
                          "x")
            .levels() == 4);
}

}  // namespace of_test_unet_config
