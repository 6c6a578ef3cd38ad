#pragma once
// Whether states can be found with which a model draws one given picture.

#include <audit/measure/detection.h>

#include <functional>
#include <vector>

namespace memsieve::audit {

/// The noises and timesteps of a search, new in each of its steps.
struct SearchNoise {
  uint64_t seed = 0;
  Stream noise = Stream::optimisation_noise, timestep = Stream::optimisation_timestep;
  /// first number of the keys, the second is step * batch + i; pictures that are not to share their noise have
  /// different ones
  int64_t key = 0;
  /// noises of each step, and of one forward and backward pass
  int64_t batch = 8, rows = 8;
};

/// Shows the noises [R, ...shape] and uniform timesteps [R] of a step on the device, in parts of at most `rows`.
void for_search_noise(const SearchNoise& search, int64_t step, at::IntArrayRef shape, const AuditedModel& model,
                      const std::function<void(const at::Tensor& noise, const at::Tensor& timestep)>& show);

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
