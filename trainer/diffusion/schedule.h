#pragma once
// How noise is added over the timesteps, and what the model is asked to predict. Names and numbers are those
// of diffusers.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace memsieve::trainer {

enum class Prediction { epsilon, v, sample };

/// "epsilon", "v_prediction" or "sample"; ConfigError otherwise.
Prediction prediction_from_name(const std::string& name);

struct ScheduleConfig {
  int64_t num_train_timesteps = 1000;
  std::string beta_schedule = "scaled_linear";  ///< "scaled_linear", "linear" or "squaredcos_cap_v2"
  double beta_start = 0.00085;                  ///< ignored by squaredcos_cap_v2, as in diffusers
  double beta_end = 0.012;
  std::string prediction_type = "epsilon";
};

/// a(t) = alphas_cumprod[t]; x_t = sqrt(a) x0 + sqrt(1 - a) noise. Computed in float64, kept as float32
/// tables on the device. Timesteps `t` are [B] int64 on that device; pictures are [B, ...] in any float
/// dtype, which results keep.
class NoiseSchedule {
 public:
  /// Throws ConfigError for an unknown name or betas outside 0 < start <= end < 1.
  explicit NoiseSchedule(const ScheduleConfig& config, c10::Device device = c10::kCPU);

  int64_t num_timesteps() const { return config_.num_train_timesteps; }
  Prediction prediction() const { return prediction_; }
  const ScheduleConfig& config() const { return config_; }
  const at::Tensor& alphas_cumprod() const { return alphas_cumprod_; }  ///< [T] float64 on the CPU

  at::Tensor add_noise(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const;
  /// What the model should answer: the noise, v = sqrt(a) noise - sqrt(1 - a) x0 (Salimans and Ho, ICLR
  /// 2022), or x0.
  at::Tensor target(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const;
  /// [B] float32: a / (1 - a).
  at::Tensor snr(const at::Tensor& t) const;
  /// [B] float32 loss weights of Min-SNR-gamma (Hang et al., ICCV 2023): min(snr, gamma) divided by snr for
  /// epsilon, by snr + 1 for v, by 1 for sample.
  at::Tensor min_snr_weight(const at::Tensor& t, double gamma) const;

 private:
  ScheduleConfig config_;
  Prediction prediction_;
  at::Tensor alphas_cumprod_;
  at::Tensor sqrt_alpha_, sqrt_one_minus_alpha_, snr_;  // [T] float32 on the device
};

}  // namespace memsieve::trainer
