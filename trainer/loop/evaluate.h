#pragma once
// Validation loss, and pictures drawn while training. Both the same for any number of ranks.

#include <ATen/core/Tensor.h>
#include <diffusion/data/rows.h>
#include <diffusion/models/model.h>
#include <diffusion/models/vae/picture_decoder.h>
#include <diffusion/noise/ddim.h>
#include <runtime/group.h>
#include <trainer/trainer_rooms.h>

namespace memsieve::trainer {

/// Rows of a batch in a pass without gradient, so that it fits where a training step does; at most 64.
int64_t rows_without_gradient(int64_t train_batch_size, bool gradient_checkpointing);

struct ValidationLoss {
  /// mean over rows and draws of the unweighted per-row loss, with captions
  double loss = 0;
  /// rows times draws
  int64_t rows = 0;
};

/// The timestep of draw `draw` (of `draws`) of row `row`: spread evenly over [0, num_timesteps), one draw in each of
/// `draws` equal parts, rows shifted against each other by the golden ratio.
int64_t stratified_timestep(int64_t row, int64_t draw, int64_t draws, int64_t num_timesteps);

struct ValidationOptions {
  uint64_t seed = 0;
  /// of each row
  int64_t draws = 4;
  /// rows of one forward, at most
  int64_t batch_size = 16;
};

/// COLLECTIVE. Noise is keyed by (seed, row, draw), so that runs and steps compare.
ValidationLoss validate(Model& model, const RowMaker& rows, Group& group, const ValidationOptions& options);

struct DrawOptions {
  uint64_t seed = 0;
  /// pictures of each caption
  int64_t per_prompt = 1;
  /// pictures drawn at once, at most
  int64_t batch_size = 16;
  DdimOptions ddim;
};

/// COLLECTIVE. Draws `per_prompt` pictures for every caption of `prompts`; picture s of prompt p starts from noise
/// keyed by (seed, p, s). Returns uint8 [P, S, 3, H, W] on the CPU of every rank.
at::Tensor draw_samples(Model& model, const Dataset& prompts, PictureDecoder& pictures, const NoiseSchedule& schedule,
                        Group& group, const DrawOptions& options);

}  // namespace memsieve::trainer
