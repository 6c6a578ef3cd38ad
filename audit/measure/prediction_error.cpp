#include <ATen/ATen.h>
#include <audit/measure/prediction_error.h>
#include <c10/core/GradMode.h>
#include <diffusion/data/rows.h>
#include <memsieve/error.h>

#include <cmath>

namespace memsieve::audit {

std::vector<int64_t> middle_timesteps(int64_t count, int64_t draws) {
  std::vector<int64_t> timesteps;
  for (int64_t i = 0; i < draws; ++i) timesteps.push_back((2 * i + 1) * count / (2 * draws));
  return timesteps;
}

std::vector<double> prediction_errors(const Dataset& data, const std::vector<int64_t>& rows, int64_t key,
                                      AuditedModel& model, const PredictionErrorOptions& options) {
  const c10::NoGradGuard no_grad;
  const c10::Device device = model.model.device();
  const auto size = static_cast<int64_t>(rows.size());
  const auto timesteps = middle_timesteps(model.schedule.num_timesteps(), options.draws);
  const Rows loaded = data.load(rows);
  const at::Tensor x0 = loaded.latents.to(device);
  const Conditioning condition = loaded.condition.to(device);
  at::Tensor sum = at::zeros({size}, at::TensorOptions(at::kDouble).device(device));
  for (int64_t draw = 0; draw < options.draws; ++draw) {
    const at::Tensor noise =
        keyed_normal(options.seed, options.stream, {{key, draw}}, data.latent_shape()).to(device).expand_as(x0);
    const at::Tensor t =
        at::full({size}, timesteps[static_cast<size_t>(draw)], at::TensorOptions(at::kLong).device(device));
    const at::Tensor noisy = model.schedule.add_noise(x0, noise, t);
    const at::Tensor prediction = model.model.predict(noisy, t, condition);
    sum += row_losses(prediction, model.schedule.target(x0, noise, t)).to(at::kDouble);
  }
  const at::Tensor mean = (sum / static_cast<double>(options.draws)).cpu();
  std::vector<double> errors(mean.const_data_ptr<double>(), mean.const_data_ptr<double>() + size);
  for (size_t i = 0; i < errors.size(); ++i)
    if (!std::isfinite(errors[i]))
      throw NonFiniteError(data.path() + ": the prediction's error of row " + std::to_string(rows[i]) +
                           " is NaN or Inf; the model or the picture is damaged, or --mixed-precision fp16 overflows");
  return errors;
}

}  // namespace memsieve::audit
