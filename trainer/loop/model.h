#pragma once
// The UNet as the loop sees it: a callable on one device, under autocast if configured.

#include <trainer/data/dataset.h>
#include <trainer/loop/config.h>
#include <trainer/loop/optimizer.h>
#include <trainer/dist/group.h>
#include <trainer/nn/unet.h>

#include <optional>

namespace memsieve::trainer {

class Model {
 public:
  /// `autocast`: half or bfloat16, or none. `first_timestep`: NoiseSchedule's.
  Model(UNet2DConditionModel unet, c10::Device device, std::optional<at::ScalarType> autocast,
        int64_t first_timestep = 0);

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
  std::optional<at::ScalarType> autocast_;
  int64_t first_timestep_;
};

/// COLLECTIVE (agreement on errors; weights of rank 0 on all ranks). The model that the configuration names,
/// or the one in `folder` if that is not empty. Throws ConfigError or DataError.
Model make_model(const TrainConfig& config, const std::string& folder, const NoiseSchedule& schedule,
                 Group& group);

/// Throws ConfigError unless the model takes the data set's latents and all that its captions come with.
void check_model_fits(const UNetConfig& model, const Dataset& data);

}  // namespace memsieve::trainer
