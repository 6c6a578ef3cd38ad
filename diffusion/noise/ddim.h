#pragma once
// Drawing pictures: DDIM without added noise, or Euler's steps for flow, with classifier-free guidance.

#include <ATen/core/Tensor.h>
#include <diffusion/noise/schedule.h>
#include <diffusion/models/common/conditioning.h>

#include <functional>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// The model: (sample [B, C, H, W] float32, timestep [B], condition) -> [B, C, H, W], any float dtype. Timesteps are
/// int64, but float32 for flow, where they fall between those of training.
using Predict =
    std::function<at::Tensor(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition)>;

/// Defaults as Stable Diffusion's scheduler_config.json.
struct DdimOptions {
  int64_t steps = 25;
  /// predict null + guidance * (text - null); 1 or less: the captioned prediction alone, at half the cost
  double guidance = 2.0;
  /// "leading", "trailing" or "linspace" (Lin et al., WACV 2024, table 2); not used by flow
  std::string timestep_spacing = "leading";
  /// added to the timesteps of "leading"; not used by flow
  int64_t steps_offset = 1;
  /// the last step ends at x0 itself, not at noise level 0; flow always does
  bool set_alpha_to_one = false;
  /// clamp the predicted x0 to [-clip_sample_range, clip_sample_range]
  bool clip_sample = false;
  double clip_sample_range = 1;
};

/// Timesteps visited, descending, as diffusers' DDIMScheduler. Throws ConfigError, beginning with `where`, if steps is
/// below 1 or too many.
std::vector<int64_t> ddim_timesteps(int64_t num_train_timesteps, const DdimOptions& options,
                                    const std::string& where = "ddim");

/// Song, Meng, Ermon: "Denoising Diffusion Implicit Models", ICLR 2021, formula (12) with eta = 0; for flow the same
/// formula is Euler's method, with the noise levels of diffusers' FlowMatchEulerDiscreteScheduler. Guidance after Ho
/// and Salimans (2022), null and captioned rows in one forward of 2B rows, [null; captioned]. noise [B, C, H, W]
/// float32, condition of B rows, null of none, all on the schedule's device. Returns [B, C, H, W] float32. Runs
/// without gradient.
at::Tensor ddim_sample(const NoiseSchedule& schedule, const Predict& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options);

}  // namespace memsieve::diffusion
