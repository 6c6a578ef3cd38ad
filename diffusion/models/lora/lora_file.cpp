#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <diffusion/io/json_text.h>
#include <diffusion/io/safetensors.h>
#include <diffusion/io/text_file.h>
#include <diffusion/models/lora/lora.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

namespace memsieve::diffusion {

const char* const lora_file_name = "pytorch_lora_weights.safetensors";

namespace {

using Json = nlohmann::json;

const char* const metadata_key = "lora_adapter_metadata";  // diffusers' name

struct AdapterFile {
  /// `LAYER.lora_A.weight`, without the prefix
  TensorMap tensors;
  /// as the header says
  std::optional<double> alpha;
};

/// `prefix`: "unet."
std::string without_prefix(const std::string& name, const std::string& prefix) {
  return name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name;
}

bool ends_with(const std::string& name, const std::string& tail) {
  return name.size() > tail.size() && name.compare(name.size() - tail.size(), tail.size(), tail) == 0;
}

std::string tensor_in(const std::string& path, const std::string& name) {
  return path + ": tensor '" + name + "'";
}

std::string value_in(const std::string& where, const std::string& key, const Json& value) {
  return where + ": " + key + " is " + json_text(value);
}

/// Whether adapters that peft starts so stand beside other weights than the model's own.
bool changes_base(const Json& init) {
  if (!init.is_string()) return false;
  const auto name = init.get<std::string>();
  return name.rfind("pissa", 0) == 0 || name == "olora" || name == "corda" || name == "loftq";
}

// Of what peft's LoraConfig can ask for, only what is computed here may be in the file.
std::optional<double> read_alpha(const std::string& where, const std::string& text, const std::string& prefix) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) throw DataError(where + " is not a JSON object");
  std::optional<double> alpha;
  for (const auto& [key, value] : json.items()) {
    const std::string name = without_prefix(key, prefix);
    if (name == "lora_alpha") {
      if (!value.is_number() || !(value.get<double>() > 0))
        throw DataError(value_in(where, key, value) + ", must be a number above 0");
      alpha = value.get<double>();
    }
    static const std::set<std::string> switches = {"use_dora", "use_rslora", "use_qalora", "lora_bias",
                                                   "fan_in_fan_out"};
    const bool asks = value.is_boolean() && value.get<bool>();
    const bool differs_by_layer =
        (name == "alpha_pattern" || name == "rank_pattern") && value.is_object() && !value.empty();
    if ((switches.count(name) > 0 && asks) || differs_by_layer || (name == "init_lora_weights" && changes_base(value)))
      throw DataError(value_in(where, key, value) + ", which is not supported");
  }
  return alpha;
}

// diffusers' training scripts save `lora.down` and `lora.up`, peft `lora_A` and `lora_B`.
std::string as_peft_names_it(const std::string& name) {
  for (const auto& [theirs, peft] :
       {std::pair{".lora.down.weight", ".lora_A.weight"}, {".lora.up.weight", ".lora_B.weight"}})
    if (ends_with(name, theirs)) return name.substr(0, name.size() - std::strlen(theirs)) + peft;
  return name;
}

/// alpha as in the adapter_config.json beside a file that peft itself has saved.
std::optional<double> read_config_beside(const std::string& path) {
  const std::string config = (std::filesystem::path(path).parent_path() / "adapter_config.json").string();
  std::error_code error;
  if (!std::filesystem::exists(config, error))
    throw DataError(path + ": is peft's own file, and " + config +
                    ", which has its alpha, is missing; put both side by side");
  return read_alpha(config, read_text<DataError>(config), "");
}

void refuse_text_encoder(const std::string& path, const std::string& name, const std::string& component) {
  if (name.rfind("text_encoder.", 0) != 0 && name.rfind("text_encoder_", 0) != 0) return;
  throw DataError(tensor_in(path, name) +
                  ": the file holds adapters of a text encoder, too, which is not trained here; " +
                  "save those of the " + component + " alone, with diffusers: save_lora_weights(FOLDER, " + component +
                  "_lora_layers=...)");
}

AdapterFile read_file(const std::string& path, const std::string& component) {
  const std::string prefix = component + ".", peft_prefix = "base_model.model.";
  Metadata metadata;
  AdapterFile file;
  bool of_peft = false;
  for (auto& [name, tensor] : load_safetensors(path, &metadata)) {
    refuse_text_encoder(path, name, component);
    of_peft |= name.rfind(peft_prefix, 0) == 0;
    const std::string own = as_peft_names_it(without_prefix(without_prefix(name, peft_prefix), prefix));
    if (!ends_with(own, ".lora_A.weight") && !ends_with(own, ".lora_B.weight"))
      throw DataError(tensor_in(path, name) + " is not named " + prefix +
                      "LAYER.lora_A.weight or .lora_B.weight: no adapter of this model in "
                      "diffusers' form; load and save it with diffusers");
    if (!file.tensors.emplace(own, tensor).second)
      throw DataError(tensor_in(path, name) + " stands there twice: with and without '" + prefix +
                      "', or under an older name");
  }
  if (file.tensors.empty()) throw DataError(path + ": holds no tensor");
  const auto found = metadata.find(metadata_key);
  if (found != metadata.end()) {
    file.alpha = read_alpha(path + ": " + metadata_key, found->second, prefix);
  } else if (of_peft) {
    file.alpha = read_config_beside(path);
  }
  return file;
}

void copy_values(const std::string& path, TensorMap tensors,
                 const std::vector<std::pair<std::string, at::Tensor>>& parameters) {
  at::NoGradGuard no_grad;
  for (auto [name, parameter] : parameters) {
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw DataError(tensor_in(path, name) + " is missing");
    if (found->second.sizes() != parameter.sizes())
      throw DataError(tensor_in(path, name) + " is " + in_brackets(found->second.sizes()) +
                      ", this model and rank ask for " + in_brackets(parameter.sizes()));
    parameter.copy_(found->second);
    tensors.erase(found);
  }
  if (!tensors.empty())
    throw DataError(tensor_in(path, tensors.begin()->first) + " belongs to no layer that has an adapter here");
}

Json number(double value) {
  if (value == std::floor(value) && std::abs(value) < 1e15) return static_cast<int64_t>(value);
  return value;
}

}  // namespace

Lora Lora::load(torch::nn::Module& model, const std::string& path, const std::string& component) {
  const AdapterFile file = read_file(path, component);
  const auto modules = model.named_modules("", /*include_self=*/false);
  LoraConfig config;
  config.target_modules.clear();
  for (const auto& [name, tensor] : file.tensors) {
    if (!ends_with(name, ".lora_A.weight")) continue;
    const std::string layer = name.substr(0, name.rfind(".lora_A.weight"));
    const auto* found = modules.find(layer);
    if (found == nullptr || dynamic_cast<Adaptable*>(found->get()) == nullptr)
      throw DataError(tensor_in(path, name) + ": this model has no such layer");
    if (tensor.dim() < 2 || tensor.size(0) < 1)
      throw DataError(tensor_in(path, name) + " is " + in_brackets(tensor.sizes()) + ", no adapter's");
    if (config.target_modules.empty()) config.rank = tensor.size(0);
    config.target_modules.push_back(layer);
  }
  if (config.target_modules.empty())
    throw DataError(tensor_in(path, file.tensors.begin()->first) + " has no lora_A beside it");
  config.alpha = file.alpha.value_or(static_cast<double>(config.rank));
  Lora lora(model, config, 0, path, component);
  copy_values(path, file.tensors, lora.parameters());
  return lora;
}

void Lora::restore(const std::string& path) {
  const AdapterFile file = read_file(path, component_);
  const double alpha = file.alpha.value_or(static_cast<double>(config_.rank));
  if (alpha != config_.alpha)
    throw DataError(path + ": alpha is " + number(alpha).dump() + ", here it is " + number(config_.alpha).dump() +
                    "; set lora.alpha to that of the file");
  copy_values(path, file.tensors, parameters());
}

void Lora::save(const std::string& folder) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw DataError(folder + ": cannot be made: " + error.message());
  TensorMap tensors;
  const std::string prefix = component_ + ".";
  for (const auto& [name, tensor] : parameters()) tensors.emplace(prefix + name, tensor);
  const Json config = {{prefix + "r", config_.rank},
                       {prefix + "lora_alpha", number(config_.alpha)},
                       {prefix + "target_modules", config_.target_modules}};
  save_safetensors((std::filesystem::path(folder) / lora_file_name).string(), tensors,
                   {{"format", "pt"}, {metadata_key, config.dump(2)}});
}

}  // namespace memsieve::diffusion
