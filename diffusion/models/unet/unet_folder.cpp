#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/models/common/adapter.h>
#include <diffusion/models/diffusers/model_folder.h>
#include <diffusion/models/unet/unet.h>

#include <filesystem>
#include <nlohmann/json.hpp>

namespace memsieve::diffusion {

namespace {

UNet2DConditionModel unfilled_unet(const std::string& folder) {
  const UNetConfig config = read_unet_config(config_path(folder));
  const Unfilled unfilled;
  return UNet2DConditionModel(config);
}

}  // namespace

UNet2DConditionModel load_unet(const std::string& folder) {
  UNet2DConditionModel model = unfilled_unet(folder);
  fill_parameters(*model, read_weights(folder));
  return model;
}

std::string unet_shapes(const std::string& folder) {
  nlohmann::json shapes = nlohmann::json::object();
  for (const auto& item : unfilled_unet(folder)->named_parameters()) shapes[item.key()] = item->sizes().vec();
  return shapes.dump(1) + "\n";
}

void save_unet(const std::string& folder, UNet2DConditionModel model) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw DataError(folder + ": cannot be made: " + error.message());
  TensorMap tensors;
  for (const auto& item : model->named_parameters()) tensors.emplace(item.key(), item.value());
  save_safetensors(weights_path(folder), tensors, {{"format", "pt"}});
  write_text_atomically(config_path(folder), to_json(model->config()));
}

}  // namespace memsieve::diffusion
