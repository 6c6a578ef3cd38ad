#pragma once
// How noise is added over the timesteps, and what the model is asked to predict. Names and numbers are those
// of diffusers.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace memsieve::diffusion {

enum class Prediction { epsilon, v, sample, flow };

/// "epsilon", "v_prediction", "sample" or "flow"; otherwise ConfigError, beginning with `where`.
Prediction prediction_from_name(const std::string& name, const std::string& where = "schedule");

struct ScheduleConfig {
  int64_t num_train_timesteps = 1000;
  /// "scaled_linear", "linear" or "squaredcos_cap_v2"
  std::string beta_schedule = "scaled_linear";
  /// ignored by squaredcos_cap_v2, as in diffusers
  double beta_start = 0.00085;
  double beta_end = 0.012;
  std::string prediction_type = "epsilon";
  /// the last timestep is pure noise (Lin et al., WACV 2024, algorithm 1)
  bool rescale_betas_zero_snr = false;
};

/// Throws ConfigError, beginning with `where`, for an unknown name, betas outside 0 < start <= end < 1, or a rescaling
/// that the prediction cannot have: at pure noise the noise itself says nothing about the picture.
void check_schedule(const ScheduleConfig& config, const std::string& where = "schedule");

/// x_t = signal(t) x0 + noise(t) noise. With betas: signal = sqrt(a), noise = sqrt(1 - a), a(t) = alphas_cumprod[t].
/// For "flow" (rectified flow: Liu et al., ICLR 2023) betas play no role: noise = s, signal = 1 - s, s(t) = (t + 1) /
/// T. Computed in float64, kept as float32 tables on the device. Timesteps `t` are [B] int64 on that device; pictures
/// are [B, ...] in any float dtype, which results keep.
class NoiseSchedule {
 public:
  /// Throws ConfigError as check_schedule does.
  explicit NoiseSchedule(const ScheduleConfig& config, c10::Device device = c10::kCPU);

  int64_t num_timesteps() const { return config_.num_train_timesteps; }
  Prediction prediction() const { return prediction_; }
  const ScheduleConfig& config() const { return config_; }
  /// [T] float64 on the CPU: signal(t)^2.
  const at::Tensor& alphas_cumprod() const { return alphas_cumprod_; }
  /// What to add to a timestep before the model sees it: diffusers' flow schedulers count from 1, the others from 0.
  int64_t first_timestep() const { return prediction_ == Prediction::flow ? 1 : 0; }

  at::Tensor add_noise(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const;
  /// What the model should answer: the noise; v = signal noise - noise(t) x0 (Salimans and Ho, ICLR 2022); x0; or for
  /// flow the velocity, noise - x0.
  at::Tensor target(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const;
  /// The picture x0 that a model stands for which answers `prediction` to the noisy `x`; like x. Differentiable.
  at::Tensor predicted_sample(const at::Tensor& x, const at::Tensor& prediction, const at::Tensor& t) const;
  /// [B] float32: signal^2 / noise^2.
  at::Tensor snr(const at::Tensor& t) const;
  /// [B] float32 loss weights of Min-SNR-gamma (Hang et al., ICCV 2023): what makes every kind's squared error
  /// min(snr, gamma) times that of x0. For sample min(snr, gamma); divided by snr for epsilon, by snr + 1 for v; times
  /// s^2 for flow.
  at::Tensor min_snr_weight(const at::Tensor& t, double gamma) const;

 private:
  ScheduleConfig config_;
  Prediction prediction_;
  at::Tensor alphas_cumprod_;
  at::Tensor signal_, noise_, snr_;  // [T] float32 on the device
};

}  // namespace memsieve::diffusion
