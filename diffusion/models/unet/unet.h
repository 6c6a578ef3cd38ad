#pragma once
// A text-conditional UNet with the structure and the parameter names of diffusers' UNet2DConditionModel.

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <diffusion/models/common/conditioning.h>
#include <diffusion/models/unet/unet_config.h>

#include <memory>
#include <string>

namespace memsieve::diffusion {

class UNet2DConditionModelImpl : public torch::nn::Module {
 public:
  /// Weights start at random as torch's layers do, from ATen's default CPU generator (at::manual_seed). ConfigError if
  /// the configuration contradicts itself.
  explicit UNet2DConditionModelImpl(UNetConfig config);
  ~UNet2DConditionModelImpl() override;

  /// sample [B, C, H, W] in any float dtype; timestep [B] (or 0-dim) of integers or floats on sample's device;
  /// condition.text [B, L, D] with D = config().text_dim(); models with text_time (SDXL) also condition.pooled [B,
  /// config().pooled_dim(N)] and condition.time_ids [B, N], which must be undefined for others. Returns [B,
  /// out_channels, H, W]. H and W may be any size. Never waits for the device. Inputs are cast to the parameters'
  /// dtype, the answer has that dtype (under autocast: what autocast makes of it). Works in channels_last inside,
  /// whatever the memory format of `sample`. DataError if the shapes do not fit the configuration.
  at::Tensor forward(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition);

  /// On: as in diffusers, every ResNet block and every transformer block keeps only its inputs for backward and is
  /// computed again there. Less memory, about a third more time; the same gradients. Passes without gradient do not
  /// change. May be switched between passes. diffusion/models/common/gradient_checkpointing.h says how.
  void set_gradient_checkpointing(bool on);

  const UNetConfig& config() const { return config_; }

 private:
  struct Parts;
  void check_inputs(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& in) const;
  at::Tensor activated_time(const at::Tensor& timestep, const Conditioning& in, int64_t rows);

  UNetConfig config_;
  std::unique_ptr<Parts> parts_;
};
TORCH_MODULE(UNet2DConditionModel);

/// Reads a diffusers folder: config.json and diffusion_pytorch_model.safetensors (or its shards with
/// diffusion_pytorch_model.safetensors.index.json). Parameters become float32 on the CPU. ConfigError for config.json;
/// DataError naming the file and the tensor for anything missing, additional or of another shape.
UNet2DConditionModel load_unet(const std::string& folder);

/// JSON object of every parameter's name and shape that the folder's config.json asks for. Needs no weights, and takes
/// no memory for them. ConfigError for config.json.
std::string unet_shapes(const std::string& folder);

/// Writes config.json and diffusion_pytorch_model.safetensors, each to a temporary name first; makes the folder.
/// Parameters keep their dtype. DataError if it cannot be written.
void save_unet(const std::string& folder, UNet2DConditionModel model);

}  // namespace memsieve::diffusion
