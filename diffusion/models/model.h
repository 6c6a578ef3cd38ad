#pragma once
// A denoiser on one device, under autocast if asked for, with or without adapters.

#include <diffusion/models/common/denoiser.h>
#include <diffusion/models/lora/lora.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::diffusion {

struct ModelOptions {
  c10::Device device = c10::kCPU;
  /// half or bfloat16, or float32 throughout
  std::optional<at::ScalarType> autocast = std::nullopt;
  /// NoiseSchedule::first_timestep()
  int64_t first_timestep = 0;
};

class Model {
 public:
  /// Moves the parameters to the device, as float32.
  Model(std::unique_ptr<Denoiser> denoiser, const ModelOptions& options);

  /// sample [B, C, H, W], timestep [B], condition, all on the device. Returns [B, C, H, W] float32, with gradient where
  /// the caller's mode asks for it.
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition);

  /// Freezes the denoiser and adds adapters (diffusion/models/lora/lora.h), which are what is trained from now on.
  /// Under mixed precision the layers of the frozen model then keep the dtype that they compute in; norms stay float32.
  void add_lora(const LoraConfig& config, uint64_t seed, const std::string& where);

  /// Freezes the denoiser and adds the adapters of a file (Lora::load), which can be trained. DataError.
  void load_lora(const std::string& path);

  /// Nothing of it is trained: the layers keep the dtype that they compute in, as those under adapters do.
  void freeze();

  /// What is trained: the denoiser's parameters, or the adapters alone.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;
  std::vector<at::Tensor> parameter_list() const;
  /// The trained weights as a diffusers folder, or a folder with an adapter file. Throws DataError.
  void save(const std::string& folder);
  /// "unet" or "lora": the name of such a folder in a checkpoint.
  std::string kind() const { return lora_ ? "lora" : denoiser_->component(); }

  Denoiser& denoiser() { return *denoiser_; }
  /// Null when the denoiser's own weights are trained.
  Lora* lora() { return lora_ ? &*lora_ : nullptr; }
  c10::Device device() const { return options_.device; }
  /// Of the denoiser as it was read: diffusion/models/lora/lora.h. Empty unless there are adapters or it is frozen.
  const std::string& base_fingerprint() const { return base_fingerprint_; }

 private:
  void keep_compute_dtype();

  std::unique_ptr<Denoiser> denoiser_;
  ModelOptions options_;
  std::optional<Lora> lora_;
  std::string base_fingerprint_;
};

/// The model without its adapters for a scope: the one that fine-tuning started from.
class AdaptersOff {
 public:
  explicit AdaptersOff(Model& model) : lora_(model.lora()), before_(lora_ != nullptr && lora_->applied()) {
    apply(false);
  }
  ~AdaptersOff() { apply(before_); }
  AdaptersOff(const AdaptersOff&) = delete;
  AdaptersOff& operator=(const AdaptersOff&) = delete;

 private:
  void apply(bool on) {
    if (lora_ != nullptr) lora_->apply(on);
  }
  Lora* lora_;
  bool before_;
};

}  // namespace memsieve::diffusion
