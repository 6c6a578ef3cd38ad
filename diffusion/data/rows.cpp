#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <diffusion/data/rows.h>

namespace memsieve::diffusion {

namespace {

constexpr int64_t kSmallPicture = 4;  // height and width

/// What copies of a picture have in common, though they may be shifted or recoloured: [B, F].
at::Tensor features(const at::Tensor& text, const at::Tensor& latents) {
  const auto unit = [](const at::Tensor& t) { return t / t.norm(2, {1}, /*keepdim=*/true).clamp_min(1e-6); };
  const auto small = at::adaptive_avg_pool2d(latents, {kSmallPicture, kSmallPicture});
  return at::cat({unit(text.mean(1)), unit(small.flatten(1))}, 1);
}

}  // namespace

RowMaker::RowMaker(Dataset data, const NoiseSchedule& schedule, c10::Device device)
    : data_(std::move(data)), schedule_(schedule), device_(device), null_(data_.null().to(device)) {}

at::Tensor RowMaker::pinned(const at::Tensor& tensor) const {
  return device_.is_cpu() || !tensor.defined() ? tensor : tensor.pin_memory();
}

at::Tensor RowMaker::to_device(const at::Tensor& tensor) const {
  return device_.is_cpu() ? tensor : tensor.to(device_, /*non_blocking=*/true);
}

RowNoise RowMaker::noise(uint64_t seed, const NoiseStreams& streams, const std::vector<RowKey>& keys,
                         const NoiseOptions& options) const {
  RowNoise noise = training_noise(seed, streams, keys, data_.latent_shape(), options);
  if (data_.has_latent_std()) noise.latent = keyed_normal(seed, streams.latent, keys, data_.latent_shape());
  return noise;
}

HostRows RowMaker::gather(const std::vector<int64_t>& rows, const std::vector<int64_t>& label,
                          const at::Tensor& timestep, const RowNoise& noise, const at::Tensor& uncaptioned) const {
  at::NoGradGuard no_grad;
  const Rows loaded = data_.load(rows, noise.flipped);
  HostRows out;
  out.ids = at::tensor(label, at::kLong);
  out.timestep = pinned(timestep);
  out.latents = pinned(sample_latents(loaded, noise.latent));
  out.noise = pinned(noise.target);
  out.input_noise = noise.input.is_same(noise.target) ? out.noise : pinned(noise.input);
  out.uncaptioned = pinned(uncaptioned.defined() ? uncaptioned : at::zeros({timestep.size(0)}, at::kBool));
  const Conditioning& c = loaded.condition;
  out.condition = {pinned(c.text), pinned(c.pooled), pinned(c.time_ids)};
  return out;
}

NoisyRows RowMaker::make(const HostRows& rows) const {
  at::NoGradGuard no_grad;
  NoisyRows out;
  out.ids = rows.ids;
  out.timestep = to_device(rows.timestep);
  const at::Tensor latents = to_device(rows.latents), asked = to_device(rows.noise),
                   shown = rows.input_noise.is_same(rows.noise) ? asked : to_device(rows.input_noise);
  out.noisy = schedule_.add_noise(latents, shown, out.timestep).contiguous(at::MemoryFormat::ChannelsLast);
  out.target = schedule_.target(latents, asked, out.timestep).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor without = to_device(rows.uncaptioned);
  const Conditioning captioned = rows.condition.to(device_);
  out.likeness = features(captioned.text, latents);
  out.condition = captioned.uncaptioned_where(without, null_);
  out.captioned = without.logical_not();
  return out;
}

Conditioning RowMaker::nothing(int64_t rows) const {
  const auto& shape = null_.text.sizes();
  Conditioning out(null_.text.unsqueeze(0).expand({rows, shape[0], shape[1]}));
  if (!null_.pooled.defined()) return out;
  out.pooled = null_.pooled.unsqueeze(0).expand({rows, -1});
  out.time_ids = at::zeros({rows, 6}, null_.pooled.options());
  return out;
}

RowShape row_shape(const Dataset& data) {
  return {.latents = data.latent_shape(), .text_dim = data.text_dim(), .pooled_dim = data.pooled_dim()};
}

at::Tensor row_losses(const at::Tensor& prediction, const at::Tensor& target) {
  return (prediction - target).square().flatten(1).mean(1);
}

}  // namespace memsieve::diffusion
