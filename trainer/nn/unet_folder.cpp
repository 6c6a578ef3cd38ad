#include <memsieve/error.h>
#include <trainer/io/atomic_file.h>
#include <trainer/io/safetensors.h>
#include <trainer/nn/adapter.h>
#include <trainer/nn/unet.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

namespace memsieve::trainer {

namespace {

namespace fs = std::filesystem;
const char* const weights_name = "diffusion_pytorch_model.safetensors";

// The files named by the index's weight_map; each must lie in the folder itself.
std::set<std::string> shards_of(const fs::path& index) {
  std::ifstream file(index);
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
    throw DataError(index.string() + ": not a JSON object with a weight_map");
  std::set<std::string> names;
  for (const auto& [tensor, name] : json["weight_map"].items()) {
    if (!name.is_string() || fs::path(name.get<std::string>()).filename() != name.get<std::string>())
      throw DataError(index.string() + ": tensor '" + tensor + "': " + name.dump() + " is not a file name");
    names.insert(name.get<std::string>());
  }
  return names;
}

// All tensors of the folder, and the file to name in errors.
TensorMap load_weights(const fs::path& folder, std::string& where) {
  const fs::path whole = folder / weights_name, index = folder / (std::string(weights_name) + ".index.json");
  where = whole.string();
  if (fs::exists(whole) || !fs::exists(index)) return load_safetensors(where);
  where = index.string();
  TensorMap tensors;
  for (const std::string& name : shards_of(index))
    for (auto& [key, tensor] : load_safetensors((folder / name).string()))
      if (!tensors.emplace(key, tensor).second)
        throw DataError((folder / name).string() + ": tensor '" + key + "': stands in another shard too");
  return tensors;
}

std::string shape_text(at::IntArrayRef shape) {
  std::ostringstream out;
  out << shape;
  return out.str();
}

}  // namespace

UNet2DConditionModel load_unet(const std::string& folder) {
  const UNetConfig config = read_unet_config((fs::path(folder) / "config.json").string());
  UNet2DConditionModel model = [&] {
    const Unfilled unfilled;
    return UNet2DConditionModel(config);
  }();
  std::string where;
  TensorMap tensors = load_weights(folder, where);
  for (auto& item : model->named_parameters()) {
    const auto found = tensors.find(item.key());
    if (found == tensors.end())
      throw DataError(where + ": tensor '" + item.key() + "' is missing; config.json asks for it");
    if (found->second.sizes() != item->sizes())
      throw DataError(where + ": tensor '" + item.key() + "' is " + shape_text(found->second.sizes()) +
                      ", config.json asks for " + shape_text(item->sizes()));
    item->set_data(found->second.to(at::kFloat));
    tensors.erase(found);
  }
  if (!tensors.empty())
    throw DataError(
        where + ": tensor '" + tensors.begin()->first + "' has no place in the model of config.json" +
        (tensors.size() > 1 ? ", nor have " + std::to_string(tensors.size() - 1) + " others" : ""));
  return model;
}

std::string unet_shapes(const std::string& folder) {
  const UNetConfig config = read_unet_config((fs::path(folder) / "config.json").string());
  const Unfilled unfilled;
  nlohmann::json shapes = nlohmann::json::object();
  for (const auto& item : UNet2DConditionModel(config)->named_parameters())
    shapes[item.key()] = item->sizes().vec();
  return shapes.dump(1) + "\n";
}

void save_unet(const std::string& folder, UNet2DConditionModel model) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw DataError(folder + ": cannot be made: " + error.message());
  TensorMap tensors;
  for (const auto& item : model->named_parameters()) tensors.emplace(item.key(), item.value());
  save_safetensors((fs::path(folder) / weights_name).string(), tensors, {{"format", "pt"}});
  write_text_atomically((fs::path(folder) / "config.json").string(), to_json(model->config()));
}

}  // namespace memsieve::trainer
