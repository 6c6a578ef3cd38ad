#include <ATen/ATen.h>
#include <diffusion/noise/training_noise.h>

#include <algorithm>
#include <cmath>

namespace memsieve::diffusion {

RowNoise training_noise(uint64_t seed, const NoiseStreams& streams, const std::vector<RowKey>& rows,
                        at::IntArrayRef shape, const NoiseOptions& options) {
  RowNoise noise;
  noise.target = keyed_normal(seed, streams.noise, rows, shape);
  if (options.offset != 0) {
    std::vector<int64_t> per_channel(shape.size(), 1);
    per_channel[0] = shape[0];
    noise.target.add_(keyed_normal(seed, streams.offset, rows, per_channel), options.offset);
  }
  noise.input = noise.target;
  if (options.perturbation != 0) {
    noise.input = noise.target + options.perturbation * keyed_normal(seed, streams.perturbation, rows, shape);
  }
  if (options.random_flip) noise.flipped = keyed_bernoulli(seed, streams.flip, rows, 0.5);
  return noise;
}

int64_t timestep_at(double fraction, int64_t num_timesteps, const NoiseOptions& options) {
  if (options.timesteps == "logit_normal") {
    const double z = at::special_ndtri(at::full({}, fraction, at::kDouble)).item<double>();
    fraction = 1 / (1 + std::exp(-(options.logit_mean + options.logit_std * z)));
  }
  const auto t = static_cast<int64_t>(fraction * static_cast<double>(num_timesteps));
  return std::clamp<int64_t>(t, 0, num_timesteps - 1);
}

at::Tensor training_timesteps(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, int64_t num_timesteps,
                              const NoiseOptions& options) {
  if (options.timesteps == "uniform") return keyed_timesteps(seed, stream, rows, num_timesteps);
  std::vector<int64_t> t;
  for (const RowKey& row : rows) {
    const double fraction = (static_cast<double>(keyed_bits(seed, stream, row) >> 11) + 0.5) * 0x1p-53;
    t.push_back(timestep_at(fraction, num_timesteps, options));
  }
  return at::tensor(t, at::kLong);
}

}  // namespace memsieve::diffusion
