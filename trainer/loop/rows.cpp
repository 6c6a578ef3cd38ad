#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/loop/rows.h>

namespace memsieve::trainer {

RowMaker::RowMaker(Dataset data, const NoiseSchedule& schedule, c10::Device device)
    : data_(std::move(data)), schedule_(schedule), device_(device), null_(data_.null().to(device)) {}

at::Tensor RowMaker::to_device(const at::Tensor& tensor) const {
  if (device_.is_cpu()) return tensor;
  return tensor.pin_memory().to(device_, /*non_blocking=*/true);
}

NoisyRows RowMaker::make(const std::vector<int64_t>& rows, const std::vector<int64_t>& label,
                         const at::Tensor& timestep, const RowNoise& noise,
                         const at::Tensor& uncaptioned) const {
  at::NoGradGuard no_grad;
  const Rows loaded = data_.load(rows);
  NoisyRows out;
  out.ids = at::tensor(label, at::kLong);
  out.timestep = to_device(timestep);
  const at::Tensor latents = to_device(loaded.latents), asked = to_device(noise.target),
                   shown = noise.input.is_same(noise.target) ? asked : to_device(noise.input);
  out.noisy = schedule_.add_noise(latents, shown, out.timestep).contiguous(at::MemoryFormat::ChannelsLast);
  out.target = schedule_.target(latents, asked, out.timestep).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor without =
      to_device(uncaptioned.defined() ? uncaptioned : at::zeros({timestep.size(0)}, at::kBool));
  out.condition = loaded.condition.to(device_).uncaptioned_where(without, null_);
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

Batch batch_of(Model& model, const NoisyRows& rows, const at::Tensor& prediction, const Conditioning& null) {
  Batch batch;
  batch.sample_id = rows.ids;
  batch.timestep = rows.timestep;
  batch.prediction = prediction;
  batch.target = rows.target;
  batch.has_caption = rows.captioned;
  batch.null_prediction = [&model, &rows, null](const at::Tensor& which) {
    at::NoGradGuard no_grad;
    return model.predict(rows.noisy.index_select(0, which), rows.timestep.index_select(0, which),
                         rows.condition.select(which).uncaptioned(null));
  };
  return batch;
}

at::Tensor row_losses(const at::Tensor& prediction, const at::Tensor& target) {
  return (prediction - target).square().flatten(1).mean(1);
}

}  // namespace memsieve::trainer
