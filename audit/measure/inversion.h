#pragma once
// InvMM (Ma et al., "Could It Be Generated? Towards Practical Analysis of Memorization in Text-To-Image Diffusion
// Models"): how little of the noise must be laid down for a model to draw one given picture.

#include <audit/measure/known_picture.h>

#include <functional>
#include <optional>
#include <vector>

namespace memsieve::audit {

/// The published constants. The published method also searches the prompt, through the text encoder; here the caption's
/// states stay, as its form for models without captions has it.
struct InversionOptions {
  uint64_t seed = 0;
  /// updates at most, and noises and timesteps of each
  int64_t steps = 2000, batch = 16;
  double learning_rate = 0.1;
  /// updates between two looks at what is drawn; after the last update it is looked at in any case
  int64_t every = 50;
  /// drawings of a look with each guidance of 1, 2 ... `guidance`
  int64_t drawings = 8, guidance = 7;
  /// what all drawings of one guidance must reach; published: 0.5 by SSCD
  double similarity = 0.8;
  /// the empty caption instead of the picture's own; then one guidance is as good as another, and 1 alone is drawn
  bool empty = false;
  /// noises in one forward and backward pass; the gradient is that of all
  int64_t rows = 8;
  /// first number of the keys of noise
  int64_t key = 0;
};

/// The weight of the divergence: 1 at first, 0.001 more after every update; but after each `every`-th it is halved if
/// the mean error of the last 100 updates is not at least 0.001 below what it was at the last such place. (The
/// published code for Stable Diffusion adds the divergence to that error in place; here, as in the one for DDPM, it
/// does not.)
class DivergenceWeight {
 public:
  explicit DivergenceWeight(int64_t every) : every_(every) {}
  double value() const { return value_; }
  /// Goes on after an update before which the error was `error`.
  void update(double error);

 private:
  int64_t every_;
  double value_ = 1;
  std::vector<double> errors_;
  std::optional<double> mean_before_;
};

/// A normal distribution of noise from which a picture is drawn.
struct InvertedNoise {
  /// before each update: mean over the batch, C, H, W of (predicted x0 - x0)^2; the divergence, 1/2 mean(mu^2 + sigma^2
  /// - ln sigma^2 - 1); and its weight
  std::vector<double> errors, divergences, weights;
  /// the divergence at the first look that found drawings alike; absent = none did, which is published as infinite.
  /// Smaller = the model needs to be told less
  std::optional<double> divergence;
  /// all that was drawn, over all looks
  int64_t drawings = 0;
  /// of the last look the guidance whose least similar drawing is most so: similarities, and what was drawn
  int64_t guidance = 0;
  std::vector<double> similarities;
  at::Tensor drawn;
};

/// Moves mean and variance of the noise, at first standard normal, by Adam down error + weight * divergence of the
/// prompt's picture, until a look succeeds. `similarity` tells [R] of drawings [R, C, H, W]. Noise: keyed by (seed,
/// key, ...) in Stream::inversion_noise, inversion_timestep and inversion_drawing. Throws NonFiniteError.
InvertedNoise invert_noise(int64_t prompt, const PromptSet& set, AuditedModel& model, const InversionOptions& options,
                           const std::function<std::vector<double>(const at::Tensor& drawn)>& similarity);

}  // namespace memsieve::audit
