#pragma once
// A text-conditional UNet with the structure and the parameter names of diffusers' UNet2DConditionModel.

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>
#include <trainer/nn/config.h>

#include <memory>
#include <string>

namespace memsieve::trainer {

class DownBlockImpl;
class MidBlockImpl;
class UpBlockImpl;
class TimestepEmbeddingImpl;
class LinearImpl;
class Conv2dImpl;
class GroupNormSiluImpl;

class UNet2DConditionModelImpl : public torch::nn::Module {
 public:
  /// Weights start at random as torch's layers do, from ATen's default CPU generator (at::manual_seed).
  /// ConfigError if the configuration contradicts itself.
  explicit UNet2DConditionModelImpl(UNetConfig config);

  /// sample [B, C, H, W] in any float dtype; timestep [B] (or 0-dim) of integers or floats on sample's
  /// device; encoder_hidden_states [B, L, D] with D = config().text_dim(). Returns [B, out_channels, H, W]. H
  /// and W may be any size. Never waits for the device. Inputs are cast to the parameters' dtype (not under
  /// autocast); the answer has that dtype. On the CPU it is fastest in channels_last, which it uses by itself
  /// whatever the memory format of `sample` and weights.
  at::Tensor forward(const at::Tensor& sample, const at::Tensor& timestep,
                     const at::Tensor& encoder_hidden_states);

  const UNetConfig& config() const { return config_; }

 private:
  UNetConfig config_;
  std::shared_ptr<Conv2dImpl> conv_in_, conv_out_;
  std::shared_ptr<TimestepEmbeddingImpl> time_embedding_;
  std::shared_ptr<LinearImpl> encoder_hid_proj_;
  std::vector<std::shared_ptr<DownBlockImpl>> down_blocks_;
  std::shared_ptr<MidBlockImpl> mid_block_;
  std::vector<std::shared_ptr<UpBlockImpl>> up_blocks_;
  std::shared_ptr<GroupNormSiluImpl> conv_norm_out_;
};
TORCH_MODULE(UNet2DConditionModel);

/// Reads a diffusers folder: config.json and diffusion_pytorch_model.safetensors (or its shards with
/// diffusion_pytorch_model.safetensors.index.json). Parameters become float32 on the CPU. ConfigError for
/// config.json; DataError naming the file and the tensor for anything missing, additional or of another
/// shape.
UNet2DConditionModel load_unet(const std::string& folder);

/// Writes config.json and diffusion_pytorch_model.safetensors, each to a temporary name first; makes the
/// folder. Parameters keep their dtype. DataError if it cannot be written.
void save_unet(const std::string& folder, UNet2DConditionModel model);

}  // namespace memsieve::trainer
