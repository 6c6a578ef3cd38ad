#pragma once
// How well a model predicts pictures under the same noise.

#include <audit/model/audited_model.h>
#include <diffusion/data/dataset.h>
#include <diffusion/noise/keyed.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace memsieve::audit {

/// `draws` timesteps of `count`, each in the middle of one of as many equal parts.
std::vector<int64_t> middle_timesteps(int64_t count, int64_t draws);

/// One row as `rows`, as views.
Conditioning repeated(const Conditioning& one, int64_t rows);

/// Pictures under noise, on the device of the schedule.
struct NoisedPictures {
  /// [B, C, H, W] float32: with noise; what the model should answer
  at::Tensor noisy, target;
  /// [B] int64
  at::Tensor timestep;
};

/// Of x0 [B, C, H, W], or [1, C, H, W] for all, under noise [B, C, H, W] at timestep [B], all on that device.
NoisedPictures noised(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& timestep,
                      const NoiseSchedule& schedule);

/// Under which noise pictures are predicted.
struct NoiseDraws {
  uint64_t seed = 0;
  Stream stream = Stream::canary_noise;
  /// noise is keyed by (seed, key, draw): pictures that are asked with one key differ in nothing else
  int64_t key = 0;
  /// noises of each picture, at timesteps in the middle of equal parts of all
  int64_t draws = 16;
  /// pictures in one forward, at most
  int64_t rows = 8;
};

/// Shows all draws of `rows` of `data`, all rows of a draw before the next, in parts of at most NoiseDraws::rows with
/// the condition of each.
void for_noised(const Dataset& data, const std::vector<int64_t>& rows, const NoiseDraws& draws,
                const AuditedModel& model,
                const std::function<void(const NoisedPictures& part, const Conditioning& condition)>& show);

/// For each of `rows` of `data` the prediction's error at each draw: the mean over C, H, W of (prediction - target)^2.
/// Throws NonFiniteError, naming the row.
std::vector<std::vector<double>> prediction_errors(const Dataset& data, const std::vector<int64_t>& rows,
                                                   const NoiseDraws& draws, AuditedModel& model);

}  // namespace memsieve::audit
