#include <ATen/ATen.h>
#include <audit/measure/prediction_error.h>
#include <c10/core/GradMode.h>
#include <diffusion/data/rows.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cmath>

namespace memsieve::audit {

std::vector<int64_t> middle_timesteps(int64_t count, int64_t draws) {
  std::vector<int64_t> timesteps;
  for (int64_t i = 0; i < draws; ++i) timesteps.push_back((2 * i + 1) * count / (2 * draws));
  return timesteps;
}

Conditioning repeated(const Conditioning& one, int64_t rows) {
  const auto expanded = [rows](const at::Tensor& part) {
    if (!part.defined()) return part;
    std::vector<int64_t> shape(part.sizes().begin(), part.sizes().end());
    shape.front() = rows;
    return part.expand(shape);
  };
  return {expanded(one.text), expanded(one.pooled), expanded(one.time_ids)};
}

NoisedPictures noised(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& timestep,
                      const NoiseSchedule& schedule) {
  const at::Tensor pictures = x0.expand(noise.sizes());
  return {.noisy = schedule.add_noise(pictures, noise, timestep),
          .target = schedule.target(pictures, noise, timestep),
          .timestep = timestep};
}

void for_noised(const Dataset& data, const std::vector<int64_t>& rows, const NoiseDraws& draws,
                const AuditedModel& model,
                const std::function<void(const NoisedPictures& part, const Conditioning& condition)>& show) {
  const c10::Device device = model.model.device();
  const Rows loaded = data.load(rows);
  const at::Tensor x0 = loaded.latents.to(device);
  const Conditioning condition = loaded.condition.to(device);
  const auto timesteps = middle_timesteps(model.schedule.num_timesteps(), draws.draws);
  const auto count = static_cast<int64_t>(rows.size()), all = count * draws.draws;
  for (int64_t begin = 0; begin < all; begin += draws.rows) {
    std::vector<int64_t> places, t;
    std::vector<RowKey> keys;
    for (int64_t i = begin; i < std::min(all, begin + draws.rows); ++i) {
      places.push_back(i % count);
      t.push_back(timesteps[static_cast<size_t>(i / count)]);
      keys.push_back({draws.key, i / count});
    }
    const at::Tensor which = at::tensor(places, at::kLong).to(device);
    const at::Tensor noise = keyed_normal(draws.seed, draws.stream, keys, data.latent_shape()).to(device);
    show(noised(x0.index_select(0, which), noise, at::tensor(t, at::kLong).to(device), model.schedule),
         condition.select(which));
  }
}

std::vector<std::vector<double>> prediction_errors(const Dataset& data, const std::vector<int64_t>& rows,
                                                   const NoiseDraws& draws, AuditedModel& model) {
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> parts;
  for_noised(data, rows, draws, model, [&](const NoisedPictures& part, const Conditioning& condition) {
    parts.push_back(row_losses(model.model.predict(part.noisy, part.timestep, condition), part.target));
  });
  const at::Tensor errors = at::cat(parts).to(at::kCPU, at::kDouble).view({draws.draws, -1}).t().contiguous();
  std::vector<std::vector<double>> found;
  for (size_t i = 0; i < rows.size(); ++i) {
    const double* begin = errors.const_data_ptr<double>() + static_cast<int64_t>(i) * draws.draws;
    found.emplace_back(begin, begin + draws.draws);
    if (std::all_of(found.back().begin(), found.back().end(), [](double e) { return std::isfinite(e); })) continue;
    throw NonFiniteError(data.path() + ": the prediction's error of row " + std::to_string(rows[i]) +
                         " is NaN or Inf; the model or the picture is damaged, or --mixed-precision fp16 overflows");
  }
  return found;
}

}  // namespace memsieve::audit
