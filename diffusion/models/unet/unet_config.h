#pragma once
// The config.json of a diffusers UNet2DConditionModel folder, as far as this UNet can build it.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Field names, defaults and meaning are those of diffusers' UNet2DConditionModel. Whatever diffusers allows as a
/// number or a list with one entry per level is a list here, so always block_out_channels.size() long. Levels run from
/// the finest to the coarsest.
struct UNetConfig {
  /// one entry (square) or {height, width}; informative, forward takes any size
  std::optional<std::vector<int64_t>> sample_size;
  int64_t in_channels = 4;
  int64_t out_channels = 4;
  bool flip_sin_to_cos = true;
  double freq_shift = 0;
  std::vector<std::string> down_block_types = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                                               "DownBlock2D"};
  std::string mid_block_type = "UNetMidBlock2DCrossAttn";
  std::vector<std::string> up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
                                             "CrossAttnUpBlock2D"};
  std::vector<int64_t> block_out_channels = {320, 640, 1280, 1280};
  std::vector<int64_t> layers_per_block = {2, 2, 2, 2};
  int64_t norm_num_groups = 32;
  double norm_eps = 1e-5;
  std::vector<int64_t> cross_attention_dim = {1280, 1280, 1280, 1280};
  std::vector<int64_t> transformer_layers_per_block = {1, 1, 1, 1};
  /// set = `encoder_hid_dim_type: text_proj`: Linear(encoder_hid_dim, cross_attention_dim)
  std::optional<int64_t> encoder_hid_dim;
  std::vector<int64_t> attention_head_dim = {
      /// the NUMBER of heads, in spite of its name, as in diffusers
      8, 8, 8, 8};
  bool use_linear_projection = false;
  /// kept for the file only: scaled_dot_product_attention accumulates in float32 anyway
  bool upcast_attention = false;
  /// default 4 * block_out_channels[0]
  std::optional<int64_t> time_embedding_dim;
  int64_t conv_in_kernel = 3;
  int64_t conv_out_kernel = 3;
  /// unset, or "text_time": SDXL's pooled text and sizes
  std::optional<std::string> addition_embed_type;
  /// sines and cosines per time id; set with text_time
  std::optional<int64_t> addition_time_embed_dim;
  /// what add_embedding takes; with text_time
  std::optional<int64_t> projection_class_embeddings_input_dim;

  int64_t levels() const { return static_cast<int64_t>(block_out_channels.size()); }
  int64_t time_embed_dim() const { return time_embedding_dim.value_or(4 * block_out_channels.front()); }
  /// Whether the model takes Conditioning's pooled text and time_ids.
  bool has_text_time() const { return addition_embed_type.has_value(); }
  /// Width of the pooled text that goes with so many time ids per row: 6 for SDXL's base model, 5 for its refiner. 0
  /// without text_time; not positive if so many ids leave no room.
  int64_t pooled_dim(int64_t time_ids = 6) const {
    return projection_class_embeddings_input_dim.value_or(0) - time_ids * addition_time_embed_dim.value_or(0);
  }
  /// Whether any block of this level has attention; the middle block belongs to the coarsest.
  bool attends(int64_t level) const;
  /// Last dimension of encoder_hidden_states.
  int64_t text_dim() const { return encoder_hid_dim.value_or(cross_attention_dim.front()); }
};

/// Parses a config.json. A feature that this UNet lacks, an unknown key, a wrong type, a list of the wrong length, or
/// channels that groups or heads do not divide: ConfigError naming file, key and value. Keys of lacking features may
/// stand there with diffusers' default.
UNetConfig read_unet_config(const std::string& path);

/// The same from JSON text; `where` stands for the file name in errors.
UNetConfig parse_unet_config(const std::string& json_text, const std::string& where);

/// Throws ConfigError naming `where`, field and value if the configuration cannot be built.
void check_unet_config(const UNetConfig& config, const std::string& where);

/// config.json text that diffusers' from_pretrained and read_unet_config both take. Lists of equal entries become
/// one number.
std::string to_json(const UNetConfig& config);

}  // namespace memsieve::diffusion
