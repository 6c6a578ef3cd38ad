#include <memsieve/error.h>
#include <diffusion/io/text_file.h>
#include <diffusion/models/common/json_reader.h>
#include <diffusion/models/unet/unet_config.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

namespace memsieve::diffusion {

namespace {

using Json = nlohmann::json;
using Ints = std::vector<int64_t>;

const UnusedFeatures& unused_features() {
  static const UnusedFeatures table = {
      {"act_fn", {"silu", "swish"}},
      {"addition_embed_type_num_heads", {64}},
      {"attention_type", {"default"}},
      {"center_input_sample", {false, nullptr}},
      {"class_embed_type", {nullptr}},
      {"class_embeddings_concat", {false, nullptr}},
      {"cross_attention_norm", {nullptr}},
      {"downsample_padding", {1}},
      {"dropout", {0}},
      {"dual_cross_attention", {false, nullptr}},
      {"mid_block_only_cross_attention", {nullptr, false}},
      {"mid_block_scale_factor", {1}},
      {"num_attention_heads", {nullptr}},
      {"num_class_embeds", {nullptr}},
      {"only_cross_attention", {false}},
      {"resnet_out_scale_factor", {1}},
      {"resnet_skip_time_act", {false, nullptr}},
      {"resnet_time_scale_shift", {"default"}},
      {"reverse_transformer_layers_per_block", {nullptr}},
      {"time_cond_proj_dim", {nullptr}},
      {"time_embedding_act_fn", {nullptr}},
      {"time_embedding_type", {"positional"}},
      {"timestep_post_act", {nullptr}},
  };
  return table;
}

// The linear map in front of the text, if there is one.
void read_text_projection(JsonReader& reader, const std::string& where, std::optional<int64_t>& out) {
  std::optional<std::string> type;
  reader.read("encoder_hid_dim", out);
  reader.read("encoder_hid_dim_type", type);
  if (type && type != "text_proj")
    fail_config(where, "encoder_hid_dim_type", *type, "not supported; must be null or \"text_proj\"");
  if (type && !out)
    fail_config(where, "encoder_hid_dim", nullptr, "must be given, as encoder_hid_dim_type is \"text_proj\"");
}

Json one_or_list(const Ints& values) {
  for (const int64_t value : values)
    if (value != values.front()) return values;
  return values.front();
}

template <class T>
Json or_null(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

// SDXL's additional embedding: its keys belong together.
void check_addition(const UNetConfig& c, const std::string& where) {
  if (c.addition_embed_type && c.addition_embed_type != "text_time")
    fail_config(where, "addition_embed_type", *c.addition_embed_type, "not supported; must be null or \"text_time\"");
  for (const auto& [key, value] : {std::pair{"addition_time_embed_dim", c.addition_time_embed_dim},
                                   {"projection_class_embeddings_input_dim", c.projection_class_embeddings_input_dim}})
    if (value.has_value() != c.has_text_time())
      fail_config(where, key, or_null(value),
                  c.has_text_time() ? "must be given, as addition_embed_type is \"text_time\""
                                    : "not supported unless addition_embed_type is \"text_time\"");
  if (c.has_text_time() && *c.projection_class_embeddings_input_dim <= *c.addition_time_embed_dim)
    fail_config(where, "projection_class_embeddings_input_dim", *c.projection_class_embeddings_input_dim,
                "must be above addition_time_embed_dim, " + std::to_string(*c.addition_time_embed_dim));
}

void check_types(const std::string& where, const std::string& key, const std::vector<std::string>& types,
                 int64_t levels, const std::vector<std::string>& known) {
  if (static_cast<int64_t>(types.size()) != levels)
    fail_config(where, key, types, "must have " + std::to_string(levels) + " entries, as block_out_channels has");
  for (const std::string& type : types)
    if (std::find(known.begin(), known.end(), type) == known.end())
      fail_config(where, key, type, "not supported; must be \"" + known[0] + "\" or \"" + known[1] + "\"");
}

// Weights of the model's convolutions and linear maps, those that are easily counted. A double cannot overflow.
double least_parameters(const UNetConfig& c) {
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const double first = real(c.block_out_channels.front()), time = real(c.time_embed_dim());
  const double text = real(c.cross_attention_dim.front());
  double count = time * (first + time) + text * real(c.encoder_hid_dim.value_or(0)) +
                 time * real(c.projection_class_embeddings_input_dim.value_or(0)) +
                 first * (real(c.in_channels) * real(c.conv_in_kernel) * real(c.conv_in_kernel) +
                          real(c.out_channels) * real(c.conv_out_kernel) * real(c.conv_out_kernel));
  for (int64_t i = 0; i < c.levels(); ++i) {
    const double width = real(c.block_out_channels[i]), layers = real(c.layers_per_block[i]);
    const double attentions = i + 1 == c.levels() ? 1 : c.attends(i) ? layers : 0;
    count += (2 * layers + 1) * 2 * 9 * width * width;
    count += attentions * real(c.transformer_layers_per_block[i]) * (18 * width * width + 2 * width * text);
  }
  return count;
}

}  // namespace

void check_unet_config(const UNetConfig& c, const std::string& where) {
  const int64_t levels = c.levels();
  if (levels == 0) fail_config(where, "block_out_channels", Json::array(), "must name at least one level");
  if (levels > kMostLevels)
    throw ConfigError(where + ": block_out_channels: names " + std::to_string(levels) + " levels; at most " +
                      std::to_string(kMostLevels) + " can be had");
  check_types(where, "down_block_types", c.down_block_types, levels, {"DownBlock2D", "CrossAttnDownBlock2D"});
  check_types(where, "up_block_types", c.up_block_types, levels, {"UpBlock2D", "CrossAttnUpBlock2D"});
  if (c.mid_block_type != "UNetMidBlock2DCrossAttn")
    fail_config(where, "mid_block_type", c.mid_block_type, "not supported; must be \"UNetMidBlock2DCrossAttn\"");
  const std::map<std::string, const Ints*> per_level = {
      {"layers_per_block", &c.layers_per_block},
      {"cross_attention_dim", &c.cross_attention_dim},
      {"transformer_layers_per_block", &c.transformer_layers_per_block},
      {"attention_head_dim", &c.attention_head_dim}};
  for (const auto& [key, values] : per_level)
    if (static_cast<int64_t>(values->size()) != levels || *std::min_element(values->begin(), values->end()) < 1)
      fail_config(where, key, *values, "must be " + std::to_string(levels) + " positive integers, one per level");
  for (const std::string key : {"layers_per_block", "transformer_layers_per_block"})
    if (const Ints& values = *per_level.at(key); *std::max_element(values.begin(), values.end()) > kMostLayers)
      fail_config(where, key, values, "must be at most " + std::to_string(kMostLayers));
  for (const int64_t dim : c.cross_attention_dim)
    if (dim != c.cross_attention_dim.front())
      fail_config(where, "cross_attention_dim", c.cross_attention_dim, "not supported; must be one number");
  for (int64_t i = 0; i < levels; ++i) {
    const int64_t channels = c.block_out_channels[i];
    if (channels < 1 || channels % c.norm_num_groups != 0)
      fail_config(where, "block_out_channels", c.block_out_channels,
                  "each must be a multiple of norm_num_groups, " + std::to_string(c.norm_num_groups));
    if (c.attends(i) && channels % c.attention_head_dim[i] != 0)
      fail_config(where, "attention_head_dim", c.attention_head_dim,
                  "is the number of heads and must divide block_out_channels " + Json(c.block_out_channels).dump());
  }
  for (const auto& [key, kernel] :
       {std::pair{"conv_in_kernel", c.conv_in_kernel}, {"conv_out_kernel", c.conv_out_kernel}})
    if (kernel < 1 || kernel % 2 == 0) fail_config(where, key, kernel, "must be odd");
  check_addition(c, where);
  check_parameter_count(where, least_parameters(c));
}

UNetConfig parse_unet_config(const std::string& json_text, const std::string& where) {
  UNetConfig c;
  JsonReader reader(json_text, where, "UNet2DConditionModel");
  reader.read("block_out_channels", c.block_out_channels);
  const int64_t levels = c.levels();
  reader.read_size("sample_size", c.sample_size);
  reader.read("in_channels", c.in_channels);
  reader.read("out_channels", c.out_channels);
  reader.read("flip_sin_to_cos", c.flip_sin_to_cos);
  reader.read("freq_shift", c.freq_shift);
  reader.read("down_block_types", c.down_block_types);
  reader.read("mid_block_type", c.mid_block_type);
  reader.read("up_block_types", c.up_block_types);
  reader.read_levels("layers_per_block", c.layers_per_block, levels, 2);
  reader.read("norm_num_groups", c.norm_num_groups);
  reader.read("norm_eps", c.norm_eps);
  if (!(c.norm_eps >= 0 && c.norm_eps <= 1)) fail_config(where, "norm_eps", c.norm_eps, "must lie in [0, 1]");
  reader.read_levels("cross_attention_dim", c.cross_attention_dim, levels, 1280);
  reader.read_levels("transformer_layers_per_block", c.transformer_layers_per_block, levels, 1);
  read_text_projection(reader, where, c.encoder_hid_dim);
  reader.read_levels("attention_head_dim", c.attention_head_dim, levels, 8);
  reader.read("use_linear_projection", c.use_linear_projection);
  reader.read("upcast_attention", c.upcast_attention);
  reader.read("time_embedding_dim", c.time_embedding_dim);
  reader.read("conv_in_kernel", c.conv_in_kernel);
  reader.read("conv_out_kernel", c.conv_out_kernel);
  reader.read("addition_embed_type", c.addition_embed_type);
  reader.read("addition_time_embed_dim", c.addition_time_embed_dim);
  reader.read("projection_class_embeddings_input_dim", c.projection_class_embeddings_input_dim);
  reader.reject_the_rest(unused_features());
  check_unet_config(c, where);
  return c;
}

UNetConfig read_unet_config(const std::string& path) {
  return parse_unet_config(read_text<ConfigError>(path, "a UNet folder holds config.json and its weights"), path);
}

bool UNetConfig::attends(int64_t level) const {
  return level + 1 == levels() || down_block_types[level] == "CrossAttnDownBlock2D" ||
         up_block_types[levels() - 1 - level] == "CrossAttnUpBlock2D";
}

std::string to_json(const UNetConfig& c) {
  Json j = {{"_class_name", "UNet2DConditionModel"},
            {"in_channels", c.in_channels},
            {"out_channels", c.out_channels},
            {"flip_sin_to_cos", c.flip_sin_to_cos},
            {"freq_shift", c.freq_shift},
            {"down_block_types", c.down_block_types},
            {"mid_block_type", c.mid_block_type},
            {"up_block_types", c.up_block_types},
            {"block_out_channels", c.block_out_channels},
            {"layers_per_block", one_or_list(c.layers_per_block)},
            {"norm_num_groups", c.norm_num_groups},
            {"norm_eps", c.norm_eps},
            {"cross_attention_dim", one_or_list(c.cross_attention_dim)},
            {"transformer_layers_per_block", one_or_list(c.transformer_layers_per_block)},
            {"attention_head_dim", one_or_list(c.attention_head_dim)},
            {"use_linear_projection", c.use_linear_projection},
            {"upcast_attention", c.upcast_attention},
            {"conv_in_kernel", c.conv_in_kernel},
            {"conv_out_kernel", c.conv_out_kernel}};
  j["sample_size"] =
      c.sample_size ? (c.sample_size->size() == 1 ? Json(c.sample_size->front()) : Json(*c.sample_size)) : Json();
  j["encoder_hid_dim"] = or_null(c.encoder_hid_dim);
  j["encoder_hid_dim_type"] = c.encoder_hid_dim ? Json("text_proj") : Json();
  j["time_embedding_dim"] = or_null(c.time_embedding_dim);
  j["addition_embed_type"] = or_null(c.addition_embed_type);
  j["addition_time_embed_dim"] = or_null(c.addition_time_embed_dim);
  j["projection_class_embeddings_input_dim"] = or_null(c.projection_class_embeddings_input_dim);
  return j.dump(2) + "\n";
}

}  // namespace memsieve::diffusion
