#pragma once
// What a model knows of one given picture: how well it predicts it, and whether states can be found that draw it.

#include <audit/measure/detection.h>

#include <string>
#include <vector>

namespace memsieve::audit {

/// [draws]: mean over C, H, W of (prediction - target)^2 of the prompt's picture with its caption, at
/// middle_timesteps. Noise is keyed by (seed, draw), the same for every picture of every set, so that pictures which
/// are compared are treated alike. At most `rows` draws in one forward. Throws NonFiniteError.
std::vector<double> picture_errors(int64_t prompt, const PromptSet& set, AuditedModel& model, uint64_t seed,
                                   int64_t draws, int64_t rows);

/// Constants of DoRI (arXiv 2507.16880, known here from second hand).
struct OptimisationOptions {
  uint64_t seed = 0;
  int64_t steps = 50;
  /// noises and timesteps of each step
  int64_t batch = 8;
  double learning_rate = 0.1;
  /// begin with the states of the empty caption instead of the picture's own
  bool from_empty = false;
  /// noises in one forward and backward pass; the gradient is that of all
  int64_t rows = 8;
  /// first number of the keys of noise; pictures that are not to share their noise have different ones
  int64_t key = 0;
};

/// Caption's states that were moved towards a picture.
struct OptimisedStates {
  /// of one row, on the device
  Conditioning condition;
  /// [steps]: the loss before each update
  std::vector<double> losses;
};

/// Moves all of a caption's states [L, D] by Adam down the ordinary loss of the prompt's picture, the mean over `batch`
/// rows, C, H, W of (prediction - target)^2 with uniform timesteps; noise and timesteps are new in every step, keyed by
/// (seed, key, step * batch + i). Pooled text and time ids stay. Throws NonFiniteError.
OptimisedStates optimise_states(int64_t prompt, const PromptSet& set, AuditedModel& model,
                                const OptimisationOptions& options);

/// [count, C, H, W] float32: pictures 0 .. count - 1 drawn with `condition` of one row, `rows` at a time, from the
/// noise of the set's stream, keyed by (seed, prompt, picture).
at::Tensor draw_with(const Conditioning& condition, int64_t prompt, int64_t count, const PromptSet& set,
                     AuditedModel& model, uint64_t seed, int64_t rows);

}  // namespace memsieve::audit
