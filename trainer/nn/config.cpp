#include <memsieve/error.h>
#include <trainer/nn/config.h>

#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

namespace memsieve::trainer {

namespace {

using Json = nlohmann::json;
using Ints = std::vector<int64_t>;

[[noreturn]] void fail(const std::string& where, const std::string& key, const Json& value,
                       const std::string& why) {
  throw ConfigError(where + ": " + key + ": " + value.dump() + ": " + why);
}

// Keys whose feature is not built here, with the values that mean "not used".
const std::map<std::string, std::vector<Json>>& unused_features() {
  static const std::map<std::string, std::vector<Json>> table = {
      {"act_fn", {"silu", "swish"}},
      {"addition_embed_type", {nullptr}},
      {"addition_embed_type_num_heads", {64}},
      {"addition_time_embed_dim", {nullptr}},
      {"attention_type", {"default"}},
      {"center_input_sample", {false}},
      {"class_embed_type", {nullptr}},
      {"class_embeddings_concat", {false}},
      {"cross_attention_norm", {nullptr}},
      {"downsample_padding", {1}},
      {"dropout", {0}},
      {"dual_cross_attention", {false}},
      {"mid_block_only_cross_attention", {nullptr, false}},
      {"mid_block_scale_factor", {1}},
      {"num_attention_heads", {nullptr}},
      {"num_class_embeds", {nullptr}},
      {"only_cross_attention", {false}},
      {"projection_class_embeddings_input_dim", {nullptr}},
      {"resnet_out_scale_factor", {1}},
      {"resnet_skip_time_act", {false}},
      {"resnet_time_scale_shift", {"default"}},
      {"reverse_transformer_layers_per_block", {nullptr}},
      {"time_cond_proj_dim", {nullptr}},
      {"time_embedding_act_fn", {nullptr}},
      {"time_embedding_type", {"positional"}},
      {"timestep_post_act", {nullptr}},
  };
  return table;
}

class Reader {
 public:
  Reader(const Json& object, const std::string& where) : object_(object), where_(where) {}

  bool has(const std::string& key) {
    seen_.insert(key);
    return object_.contains(key) && !object_[key].is_null();
  }

  int64_t integer(const std::string& key, const Json& value, int64_t least = 1) const {
    if (!value.is_number_integer() || value < least)
      fail(where_, key, value, "must be an integer of at least " + std::to_string(least));
    return value.get<int64_t>();
  }

  void read(const std::string& key, int64_t& out) {
    if (has(key)) out = integer(key, object_[key]);
  }
  void read(const std::string& key, std::optional<int64_t>& out) {
    if (has(key)) out = integer(key, object_[key]);
  }
  void read(const std::string& key, bool& out) {
    if (!has(key)) return;
    if (!object_[key].is_boolean()) fail(where_, key, object_[key], "must be true or false");
    out = object_[key].get<bool>();
  }
  void read(const std::string& key, double& out) {
    if (!has(key)) return;
    if (!object_[key].is_number()) fail(where_, key, object_[key], "must be a number");
    out = object_[key].get<double>();
  }
  void read(const std::string& key, std::string& out) {
    if (!has(key)) return;
    if (!object_[key].is_string()) fail(where_, key, object_[key], "must be a string");
    out = object_[key].get<std::string>();
  }
  void read(const std::string& key, std::vector<std::string>& out) {
    if (!has(key)) return;
    const Json& value = object_[key];
    if (!value.is_array()) fail(where_, key, value, "must be a list of strings");
    out.clear();
    for (const Json& entry : value) {
      if (!entry.is_string()) fail(where_, key, value, "must be a list of strings");
      out.push_back(entry.get<std::string>());
    }
  }
  void read(const std::string& key, Ints& out) {
    if (!has(key)) return;
    const Json& value = object_[key];
    if (!value.is_array()) fail(where_, key, value, "must be a list of integers");
    out.clear();
    for (const Json& entry : value) out.push_back(integer(key, entry));
  }
  // A number for all levels, or a list with one for each.
  void read_levels(const std::string& key, Ints& out, int64_t levels, int64_t otherwise) {
    out.assign(levels, otherwise);
    if (!has(key)) return;
    const Json& value = object_[key];
    if (!value.is_array()) return out.assign(levels, integer(key, value));
    if (static_cast<int64_t>(value.size()) != levels)
      fail(where_, key, value, "must be a number or " + std::to_string(levels) + " of them, one per level");
    read(key, out);
  }
  void read_sample_size(std::optional<Ints>& out) {
    if (!has("sample_size")) return;
    const Json& value = object_["sample_size"];
    Ints size;
    if (value.is_array())
      read("sample_size", size);
    else
      size = {integer("sample_size", value)};
    if (value.is_array() && size.size() != 2)
      fail(where_, "sample_size", value, "must be a number or [height, width]");
    out = size;
  }
  void read_text_projection(std::optional<int64_t>& out) {
    read("encoder_hid_dim", out);
    const bool typed = has("encoder_hid_dim_type");
    if (typed && object_["encoder_hid_dim_type"] != "text_proj")
      fail(where_, "encoder_hid_dim_type", object_["encoder_hid_dim_type"],
           "not supported; must be null or \"text_proj\"");
    if (typed && !out)
      fail(where_, "encoder_hid_dim", nullptr, "must be given, as encoder_hid_dim_type is \"text_proj\"");
  }
  // What is left must be a feature switched off, or a note of diffusers' own ("_class_name").
  void reject_the_rest() const {
    for (const auto& [key, value] : object_.items()) {
      if (seen_.count(key) || key.rfind('_', 0) == 0) continue;
      const auto found = unused_features().find(key);
      if (found == unused_features().end()) fail(where_, key, value, "unknown key");
      const auto& allowed = found->second;
      if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
        fail(where_, key, value, "not supported; must be " + allowed.front().dump());
    }
  }

 private:
  const Json& object_;
  std::string where_;
  std::set<std::string> seen_;
};

Json one_or_list(const Ints& values) {
  for (const int64_t value : values)
    if (value != values.front()) return values;
  return values.front();
}

void check_types(const std::string& where, const std::string& key, const std::vector<std::string>& types,
                 int64_t levels, const std::vector<std::string>& known) {
  if (static_cast<int64_t>(types.size()) != levels)
    fail(where, key, types, "must have " + std::to_string(levels) + " entries, as block_out_channels has");
  for (const std::string& type : types)
    if (std::find(known.begin(), known.end(), type) == known.end())
      fail(where, key, type, "not supported; must be \"" + known[0] + "\" or \"" + known[1] + "\"");
}

}  // namespace

void check_unet_config(const UNetConfig& c, const std::string& where) {
  const int64_t levels = c.levels();
  if (levels == 0) fail(where, "block_out_channels", Json::array(), "must name at least one level");
  check_types(where, "down_block_types", c.down_block_types, levels, {"DownBlock2D", "CrossAttnDownBlock2D"});
  check_types(where, "up_block_types", c.up_block_types, levels, {"UpBlock2D", "CrossAttnUpBlock2D"});
  if (c.mid_block_type != "UNetMidBlock2DCrossAttn")
    fail(where, "mid_block_type", c.mid_block_type, "not supported; must be \"UNetMidBlock2DCrossAttn\"");
  const std::map<std::string, const Ints*> per_level = {
      {"layers_per_block", &c.layers_per_block},
      {"cross_attention_dim", &c.cross_attention_dim},
      {"transformer_layers_per_block", &c.transformer_layers_per_block},
      {"attention_head_dim", &c.attention_head_dim}};
  for (const auto& [key, values] : per_level)
    if (static_cast<int64_t>(values->size()) != levels ||
        *std::min_element(values->begin(), values->end()) < 1)
      fail(where, key, *values, "must be " + std::to_string(levels) + " positive integers, one per level");
  for (const int64_t dim : c.cross_attention_dim)
    if (dim != c.cross_attention_dim.front())
      fail(where, "cross_attention_dim", c.cross_attention_dim, "not supported; must be one number");
  for (int64_t i = 0; i < levels; ++i) {
    const int64_t channels = c.block_out_channels[i];
    if (channels < 1 || channels % c.norm_num_groups != 0)
      fail(where, "block_out_channels", c.block_out_channels,
           "each must be a multiple of norm_num_groups, " + std::to_string(c.norm_num_groups));
    if (channels % c.attention_head_dim[i] != 0)
      fail(where, "attention_head_dim", c.attention_head_dim,
           "is the number of heads and must divide block_out_channels " + Json(c.block_out_channels).dump());
  }
  for (const auto& [key, kernel] :
       {std::pair{"conv_in_kernel", c.conv_in_kernel}, {"conv_out_kernel", c.conv_out_kernel}})
    if (kernel < 1 || kernel % 2 == 0) fail(where, key, kernel, "must be odd");
}

UNetConfig parse_unet_config(const std::string& json_text, const std::string& where) {
  const Json object = Json::parse(json_text, nullptr, false);
  if (object.is_discarded() || !object.is_object())
    throw ConfigError(where + ": not a JSON object; it must be the config.json of a UNet2DConditionModel");
  const std::string name = object.value("_class_name", Json("UNet2DConditionModel")).dump();
  if (name != "\"UNet2DConditionModel\"")
    throw ConfigError(where + ": _class_name: " + name + ": must be \"UNet2DConditionModel\"");
  UNetConfig c;
  Reader reader(object, where);
  reader.read("block_out_channels", c.block_out_channels);
  const int64_t levels = c.levels();
  reader.read_sample_size(c.sample_size);
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
  reader.read_levels("cross_attention_dim", c.cross_attention_dim, levels, 1280);
  reader.read_levels("transformer_layers_per_block", c.transformer_layers_per_block, levels, 1);
  reader.read_text_projection(c.encoder_hid_dim);
  reader.read_levels("attention_head_dim", c.attention_head_dim, levels, 8);
  reader.read("use_linear_projection", c.use_linear_projection);
  reader.read("upcast_attention", c.upcast_attention);
  reader.read("time_embedding_dim", c.time_embedding_dim);
  reader.read("conv_in_kernel", c.conv_in_kernel);
  reader.read("conv_out_kernel", c.conv_out_kernel);
  reader.reject_the_rest();
  check_unet_config(c, where);
  return c;
}

UNetConfig read_unet_config(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw ConfigError(path + ": cannot be opened; a UNet folder holds config.json and its weights");
  std::ostringstream text;
  text << file.rdbuf();
  return parse_unet_config(text.str(), path);
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
  j["sample_size"] = c.sample_size
                         ? (c.sample_size->size() == 1 ? Json(c.sample_size->front()) : Json(*c.sample_size))
                         : Json();
  j["encoder_hid_dim"] = c.encoder_hid_dim ? Json(*c.encoder_hid_dim) : Json();
  j["encoder_hid_dim_type"] = c.encoder_hid_dim ? Json("text_proj") : Json();
  j["time_embedding_dim"] = c.time_embedding_dim ? Json(*c.time_embedding_dim) : Json();
  return j.dump(2) + "\n";
}

}  // namespace memsieve::trainer
