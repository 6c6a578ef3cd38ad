#pragma once
// The families of models that can be trained: one folder beside this file and one line of a table each.

#include <diffusion/models/common/denoiser.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace memsieve::diffusion {

struct ModelFamily {
  /// `_class_name` in config.json
  std::string class_name;
  /// Denoiser::component()
  std::string component;
  /// A diffusers folder, parameters in float32 on the CPU. ConfigError for config.json, DataError for the weights.
  std::function<std::unique_ptr<Denoiser>(const std::string& folder)> load;
  /// Random weights, from ATen's default CPU generator. ConfigError.
  std::function<std::unique_ptr<Denoiser>(const std::string& config_path)> make;
};

/// All of them; a config.json without `_class_name` is of the first.
const std::vector<ModelFamily>& model_families();

/// The family that a config.json is of. ConfigError for a class that is none of them. What else may be wrong with the
/// file is for the family to say.
const ModelFamily& family_of(const std::string& config_path);

/// A model of whatever family: from a folder, or with random weights.
std::unique_ptr<Denoiser> load_denoiser(const std::string& folder);
std::unique_ptr<Denoiser> make_denoiser(const std::string& config_path);

/// The denoiser's own folder: `pretrained`/unet if `pretrained` is a pipeline's folder (or a checkpoint of ours), else
/// `pretrained` itself.
std::string denoiser_folder(const std::string& pretrained);

}  // namespace memsieve::diffusion
