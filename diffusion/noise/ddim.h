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

/// null + guidance * (captioned - null), all alike (Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022).
at::Tensor guided(const at::Tensor& null, const at::Tensor& captioned, double guidance);

/// What is known in one step of drawing, before it is taken.
struct DrawStep {
  /// from 0 to steps - 1
  int64_t number = 0;
  /// as the model was given it, before NoiseSchedule::first_timestep() is added; whole but for flow
  double timestep = 0;
  /// [B, C, H, W] float32, without gradient
  at::Tensor x;
  /// like x: what the model answers without and with the caption. With DrawLoop::gradient the latter carries the
  /// gradient to the condition
  at::Tensor null, captioned;
  /// [B, ...]: what `captioned` was asked with; with DrawLoop::gradient its text is a leaf that asks for its gradient
  const Conditioning& condition;
};

/// Called in every step; returns the guided prediction, like DrawStep::x.
using DrawHook = std::function<at::Tensor(const DrawStep& step)>;

struct DrawLoop {
  /// how many of the steps are taken; -1 = all
  int64_t first_steps = -1;
  /// whether DrawStep::captioned can be differentiated by the caption's states
  bool gradient = false;
};

/// Song, Meng, Ermon: "Denoising Diffusion Implicit Models", ICLR 2021, formula (12) with eta = 0; for flow the same
/// formula is Euler's method, with the noise levels of diffusers' FlowMatchEulerDiscreteScheduler. Guidance after Ho
/// and Salimans (2022), null and captioned rows in one forward of 2B rows, [null; captioned]. noise [B, C, H, W]
/// float32, condition of B rows, null of none, all on the schedule's device. Returns [B, C, H, W] float32. Runs
/// without gradient.
at::Tensor ddim_sample(const NoiseSchedule& schedule, const Predict& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options);

/// The same with `hook` in every step, which sees both predictions, whatever options.guidance is, and decides what is
/// made of them. Returns the sample after the last step taken.
at::Tensor ddim_sample(const NoiseSchedule& schedule, const Predict& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options,
                       const DrawHook& hook, const DrawLoop& loop = {});

/// The timesteps that drawing visits, DrawStep::timestep. Throws as ddim_timesteps does.
std::vector<double> draw_timesteps(const NoiseSchedule& schedule, const DdimOptions& options,
                                   const std::string& where = "ddim");

/// A timestep as a Predict takes it: [1], int64 or for flow float32, on the device.
at::Tensor timestep_tensor(const NoiseSchedule& schedule, double timestep, c10::Device device);

}  // namespace memsieve::diffusion
