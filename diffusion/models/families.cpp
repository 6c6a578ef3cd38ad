#include <memsieve/error.h>
#include <diffusion/io/json_text.h>
#include <diffusion/io/text_file.h>
#include <diffusion/models/common/json_reader.h>
#include <diffusion/models/diffusers/model_folder.h>
#include <diffusion/models/families.h>
#include <diffusion/models/unet/unet_family.h>

#include <filesystem>

namespace memsieve::diffusion {

namespace fs = std::filesystem;

const std::vector<ModelFamily>& model_families() {
  static const std::vector<ModelFamily> families = {
      {"UNet2DConditionModel", "unet", load_unet_denoiser, make_unet_denoiser},
  };
  return families;
}

const ModelFamily& family_of(const std::string& path) {
  const auto json = json_object(read_text<ConfigError>(path));
  if (!json.contains("_class_name")) return model_families().front();
  std::string known;
  for (const ModelFamily& family : model_families()) {
    if (json["_class_name"] == family.class_name) return family;
    known += (known.empty() ? "" : ", ") + family.class_name;
  }
  fail_config(path, "_class_name", json["_class_name"], "is no model that can be trained here; known are: " + known);
}

std::unique_ptr<Denoiser> load_denoiser(const std::string& folder) {
  return family_of(config_path(folder)).load(folder);
}

std::unique_ptr<Denoiser> make_denoiser(const std::string& path) {
  return family_of(path).make(path);
}

std::string denoiser_folder(const std::string& pretrained) {
  const fs::path folder(pretrained);
  std::error_code error;
  if (fs::exists(folder / "config.json", error)) return pretrained;
  for (const ModelFamily& family : model_families())
    if (fs::exists(folder / family.component / "config.json", error)) return (folder / family.component).string();
  return pretrained;
}

}  // namespace memsieve::diffusion
