#pragma once
// The UNet as the loop sees it: a callable on one device, under autocast if configured.

#include <trainer/loop/config.h>
#include <trainer/loop/optimizer.h>
#include <trainer/dist/group.h>
#include <trainer/nn/unet.h>

namespace memsieve::trainer {

class Model {
 public:
  Model(UNet2DConditionModel unet, c10::Device device, bool bf16);

  /// sample [B, C, H, W], timestep [B], condition, all on the device. Returns [B, C, H, W] float32, with
  /// gradient where the caller's mode asks for it.
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition);

  NamedTensors parameters() const;
  std::vector<at::Tensor> parameter_list() const;
  UNet2DConditionModel& unet() { return unet_; }
  c10::Device device() const { return device_; }

 private:
  UNet2DConditionModel unet_;
  c10::Device device_;
  bool bf16_;
};

/// COLLECTIVE (agreement on errors; weights of rank 0 on all ranks). The model that the configuration names,
/// or the one in `folder` if that is not empty. Throws ConfigError or DataError.
Model make_model(const TrainConfig& config, const std::string& folder, Group& group);

/// Throws ConfigError unless the model fits data of this latent shape [C, H, W] and text dimension.
void check_model_fits(const UNetConfig& model, const std::vector<int64_t>& latent_shape, int64_t text_dim,
                      const std::string& data_path);

}  // namespace memsieve::trainer
