#pragma once
// Validation loss, and pictures drawn while training. Both the same for any number of ranks.

#include <ATen/core/Tensor.h>
#include <runtime/group.h>
#include <trainer/loop/model.h>
#include <trainer/loop/pictures.h>
#include <diffusion/data/rows.h>
#include <trainer/rooms.h>

namespace memsieve::trainer {

/// Rows of a batch in a pass without gradient, so that it fits where a training step does; at most 64.
int64_t rows_without_gradient(const TrainConfig& config);

struct ValidationLoss {
  /// mean over rows and draws of the unweighted per-row loss, with captions
  double loss = 0;
  /// rows times draws
  int64_t rows = 0;
};

/// The timestep of draw `draw` (of `draws`) of row `row`: spread evenly over [0, num_timesteps), one draw in each of
/// `draws` equal parts, rows shifted against each other by the golden ratio.
int64_t stratified_timestep(int64_t row, int64_t draw, int64_t draws, int64_t num_timesteps);

/// COLLECTIVE. Noise is keyed by (seed, row, draw), so that runs and steps compare.
ValidationLoss validate(Model& model, const RowMaker& rows, Group& group, const TrainConfig& config);

/// COLLECTIVE. Draws `per_prompt` pictures for every caption of `prompts`; picture s of prompt p starts from noise
/// keyed by (seed, p, s). Returns uint8 [P, S, 3, H, W] on the CPU of every rank.
at::Tensor draw_samples(Model& model, const Dataset& prompts, PictureDecoder& pictures, const NoiseSchedule& schedule,
                        Group& group, const TrainConfig& config);

}  // namespace memsieve::trainer
