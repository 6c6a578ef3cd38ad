#pragma once
// Which timestep a row is trained at, the variants of its noise, and whether its picture is mirrored. Everything is
// keyed by row (keyed.h).

#include <diffusion/noise/keyed.h>

#include <string>
#include <vector>

namespace memsieve::diffusion {

struct NoiseOptions {
  /// `noise_offset`: share of noise that is constant over each channel
  double offset = 0;
  /// `input_perturbation`: noise that is in the input but not in the target
  double perturbation = 0;
  /// or "logit_normal"
  std::string timesteps = "uniform";
  double logit_mean = 0, logit_std = 1;
  /// every other visit, at random, sees the picture mirrored left to right
  bool random_flip = false;
};

/// The streams of one kind of rows. `latent` draws the latents of sets that hold a VAE's distributions.
struct NoiseStreams {
  Stream noise, latent, offset, perturbation, flip;
};
inline constexpr NoiseStreams kTrainNoise{Stream::train_noise, Stream::train_latent, Stream::train_offset,
                                          Stream::train_perturbation, Stream::train_flip};
inline constexpr NoiseStreams kHeldOutNoise{Stream::held_out_noise, Stream::held_out_latent, Stream::held_out_offset,
                                            Stream::held_out_perturbation, Stream::held_out_flip};
inline constexpr NoiseStreams kLookNoise{Stream::look_noise, Stream::look_latent, Stream::look_offset,
                                         Stream::look_perturbation, Stream::look_flip};
inline constexpr NoiseStreams kReferenceNoise{Stream::reference_noise, Stream::reference_latent,
                                              Stream::reference_offset, Stream::reference_perturbation,
                                              Stream::reference_flip};

/// Validation uses plain noise alone on pictures as they are, whatever the run trains with.
inline constexpr NoiseStreams kValidationNoise{Stream::validation_noise, Stream::validation_latent,
                                               Stream::validation_noise, Stream::validation_noise,
                                               Stream::validation_noise};

/// The noise of some rows, on the CPU, [B, ...shape] float32.
struct RowNoise {
  RowNoise() = default;
  // NOLINTNEXTLINE(google-explicit-constructor)
  RowNoise(const at::Tensor& both) : target(both), input(both) {}

  /// what the model is asked for
  at::Tensor target;
  /// what its input holds; the same tensor without perturbation
  at::Tensor input;
  /// standard normal, for sample_latents(); undefined for sets that hold latents as they are
  at::Tensor latent;
  /// [B] bool: rows whose picture is mirrored; undefined = none
  at::Tensor flipped;
};

/// target = n + offset * m, m one number for each channel (shape[0]) of each row (Guttenberg, "Diffusion with Offset
/// Noise", 2023); input = target + perturbation * p (Ning et al., ICML 2023); n, m, p standard normal from streams of
/// their own, so that options which are off change nothing.
RowNoise training_noise(uint64_t seed, const NoiseStreams& streams, const std::vector<RowKey>& rows,
                        at::IntArrayRef shape, const NoiseOptions& options);

/// The timestep below which `fraction` of the training rows' timesteps lie, fraction in [0, 1): T * fraction, or T *
/// sigmoid(logit_mean + logit_std * z) with z the normal quantile (Esser et al., ICML 2024, section 3.1, where t grows
/// with the noise as it does here). Held-out rows use it too: they stand for training rows.
int64_t timestep_at(double fraction, int64_t num_timesteps, const NoiseOptions& options);

/// [rows] int64 on the CPU.
at::Tensor training_timesteps(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, int64_t num_timesteps,
                              const NoiseOptions& options);

}  // namespace memsieve::diffusion
