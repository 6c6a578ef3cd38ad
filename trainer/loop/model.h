#pragma once
// The UNet as the loop sees it: a callable on one device, under autocast if configured.

#include <diffusion/data/dataset.h>
#include <trainer/config/train_config.h>
#include <trainer/optim/optimizer.h>
#include <runtime/group.h>
#include <diffusion/models/lora/lora.h>
#include <trainer/rooms.h>

#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

class Model {
 public:
  /// `autocast`: half or bfloat16, or none. `first_timestep`: NoiseSchedule's.
  Model(UNet2DConditionModel unet, c10::Device device, std::optional<at::ScalarType> autocast,
        int64_t first_timestep = 0);

  /// sample [B, C, H, W], timestep [B], condition, all on the device. Returns [B, C, H, W] float32, with gradient where
  /// the caller's mode asks for it.
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition);

  /// Freezes the UNet and adds adapters (diffusion/models/lora/lora.h), which are what is trained from now on. Under
  /// mixed precision the layers of the frozen UNet then keep the dtype that they compute in; norms stay float32.
  void add_lora(const LoraConfig& config, uint64_t seed, const std::string& where);

  /// What is trained: the UNet's parameters, or the adapters alone.
  NamedTensors parameters() const;
  std::vector<at::Tensor> parameter_list() const;
  /// The trained weights as a diffusers folder, or a folder with an adapter file. Throws DataError.
  void save(const std::string& folder);
  /// "unet" or "lora": the name of such a folder in a checkpoint.
  std::string kind() const { return lora_ ? "lora" : "unet"; }

  UNet2DConditionModel& unet() { return unet_; }
  /// Null when the UNet's own weights are trained.
  Lora* lora() { return lora_ ? &*lora_ : nullptr; }
  c10::Device device() const { return device_; }
  /// Of the UNet as it was read: diffusion/models/lora/lora.h. Empty unless there are adapters.
  const std::string& base_fingerprint() const { return base_fingerprint_; }

 private:
  UNet2DConditionModel unet_;
  c10::Device device_;
  std::optional<at::ScalarType> autocast_;
  int64_t first_timestep_;
  std::optional<Lora> lora_;
  std::string base_fingerprint_;
};

/// The model without its adapters for a scope: the one that fine-tuning started from.
class AdaptersOff {
 public:
  explicit AdaptersOff(Model& model) : lora_(model.lora()) { apply(false); }
  ~AdaptersOff() { apply(true); }
  AdaptersOff(const AdaptersOff&) = delete;
  AdaptersOff& operator=(const AdaptersOff&) = delete;

 private:
  void apply(bool on) {
    if (lora_ != nullptr) lora_->apply(on);
  }
  Lora* lora_;
};

/// COLLECTIVE (agreement on errors; weights of rank 0 on all ranks). The model that the configuration names, with the
/// weights of checkpoint `checkpoint` if that is not empty: a whole UNet, or adapters beside the configuration's.
/// Throws ConfigError or DataError.
Model make_model(const TrainConfig& config, const std::string& checkpoint, const NoiseSchedule& schedule, Group& group);

/// Throws ConfigError unless the model takes the data set's latents and all that its captions come with.
void check_model_fits(const UNetConfig& model, const Dataset& data);

}  // namespace memsieve::trainer
