#pragma once
// Random numbers that belong to a row, not to a rank: any split of the rows over ranks and batches draws the same.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace memsieve::diffusion {

/// Streams are independent of each other under one seed. Values are part of the run's meaning: never renumber them.
enum class Stream : uint64_t {
  shuffle = 1,
  train_noise = 2,
  train_timestep = 3,
  train_caption = 4,
  held_out_noise = 5,
  reference_noise = 6,
  validation_noise = 7,
  validation_timestep = 8,
  draw_noise = 9,
  train_offset = 10,
  held_out_offset = 11,
  reference_offset = 12,
  train_perturbation = 13,
  held_out_perturbation = 14,
  reference_perturbation = 15,
  train_latent = 16,
  held_out_latent = 17,
  reference_latent = 18,
  validation_latent = 19,
  train_flip = 20,
  held_out_flip = 21,
  reference_flip = 22,
  look_noise = 23,
  look_offset = 24,
  look_perturbation = 25,
  look_latent = 26,
  look_flip = 27,
  forget_shuffle = 28,
  negative_noise = 40,
  caption_gain_noise = 41,
  picture_error_noise = 50,
  optimisation_noise = 51,
  optimisation_timestep = 52,
  inversion_noise = 53,
  inversion_timestep = 54,
  inversion_drawing = 55,
  canary_noise = 60,
};

/// What names a row within a stream: (step, place) for training rows, held-out rows and looks, (sample, draw) for
/// reference and validation passes, (prompt, picture) for drawing. A held-out picture's reference draws need a sample
/// number of their own, e.g. -1 - i.
struct RowKey {
  int64_t first = 0;
  int64_t second = 0;
};

/// (step, first_place) ... (step, first_place + count - 1).
std::vector<RowKey> place_keys(int64_t step, int64_t first_place, int64_t count);

/// 64 random bits for one row. SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014) folded over the words.
uint64_t keyed_bits(uint64_t seed, Stream stream, RowKey row);

/// `bits` scaled to an integer in [0, bound), 0 < bound < 2^32: the high word of their product.
int64_t keyed_below(uint64_t bits, int64_t bound);

/// [rows, ...shape] float32 on the CPU: standard normal, from Philox 4x32-10 (Salmon et al., SC 2011) keyed by
/// keyed_bits and the Box-Muller transform. A row's values depend on its key and the shape alone.
at::Tensor keyed_normal(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, at::IntArrayRef shape);
/// [rows] int64 on the CPU, uniform in [0, num_timesteps).
at::Tensor keyed_timesteps(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, int64_t num_timesteps);
/// [rows] bool on the CPU: true with `probability` (0 = never, 1 = always).
at::Tensor keyed_bernoulli(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, double probability);

}  // namespace memsieve::diffusion
