#pragma once
// Drawing pictures: DDIM without added noise, with classifier-free guidance.

#include <ATen/core/Tensor.h>
#include <trainer/diffusion/schedule.h>
#include <trainer/nn/conditioning.h>

#include <functional>
#include <vector>

namespace memsieve::trainer {

/// The model: (sample [B, C, H, W] float32, timestep [B] int64, condition) -> [B, C, H, W], any float dtype.
using Denoiser = std::function<at::Tensor(const at::Tensor& sample, const at::Tensor& timestep,
                                          const Conditioning& condition)>;

/// Defaults as Stable Diffusion's scheduler_config.json: "leading" spacing, clip_sample and set_alpha_to_one
/// off.
struct DdimOptions {
  int64_t steps = 25;
  double guidance = 2.0;  ///< predict null + guidance * (text - null); 1 or less: the captioned prediction
                          ///< alone, at half the cost
  int64_t steps_offset = 1;
};

/// Timesteps visited, descending: i * (T / steps) + offset. Throws ConfigError if steps is below 1 or too
/// many.
std::vector<int64_t> ddim_timesteps(int64_t num_train_timesteps, const DdimOptions& options);

/// Song, Meng, Ermon: "Denoising Diffusion Implicit Models", ICLR 2021, formula (12) with eta = 0; guidance
/// after Ho and Salimans (2022), null and captioned rows in one forward of 2B rows, [null; captioned]. noise
/// [B, C, H, W] float32, condition of B rows, null of none, all on the schedule's device. Returns [B, C, H,
/// W] float32. Runs without gradient.
at::Tensor ddim_sample(const NoiseSchedule& schedule, const Denoiser& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options);

}  // namespace memsieve::trainer
