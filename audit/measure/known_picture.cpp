#include <ATen/ATen.h>
#include <audit/measure/known_picture.h>
#include <audit/measure/prediction_error.h>
#include <c10/core/GradMode.h>
#include <diffusion/data/rows.h>
#include <torch/optim/adam.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// One row as `rows`.
Conditioning repeated(const Conditioning& one, int64_t rows) {
  const auto expanded = [rows](const at::Tensor& part) {
    if (!part.defined()) return part;
    std::vector<int64_t> shape(part.sizes().begin(), part.sizes().end());
    shape.front() = rows;
    return part.expand(shape);
  };
  return {expanded(one.text), expanded(one.pooled), expanded(one.time_ids)};
}

/// Noised versions of one picture, on the device.
struct NoisedPicture {
  at::Tensor noisy, target, timestep;
};

NoisedPicture noised(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& timestep,
                     const NoiseSchedule& schedule) {
  const at::Tensor pictures = x0.expand(noise.sizes());
  return {.noisy = schedule.add_noise(pictures, noise, timestep),
          .target = schedule.target(pictures, noise, timestep),
          .timestep = timestep};
}

}  // namespace

std::vector<double> picture_errors(int64_t prompt, const PromptSet& set, AuditedModel& model, uint64_t seed,
                                   int64_t draws, int64_t rows) {
  const c10::NoGradGuard no_grad;
  const c10::Device device = model.model.device();
  const Rows loaded = set.prompts.data().load({prompt});
  const at::Tensor x0 = loaded.latents.to(device);
  const Conditioning condition = loaded.condition.to(device);
  const at::Tensor timesteps = at::tensor(middle_timesteps(model.schedule.num_timesteps(), draws), at::kLong);
  std::vector<double> errors;
  for (int64_t begin = 0; begin < draws; begin += rows) {
    const int64_t size = std::min(rows, draws - begin);
    const at::Tensor noise =
        keyed_normal(seed, Stream::picture_error_noise, place_keys(0, begin, size), set.prompts.data().latent_shape());
    const NoisedPicture made =
        noised(x0, noise.to(device), timesteps.narrow(0, begin, size).to(device), model.schedule);
    const at::Tensor answer = model.model.predict(made.noisy, made.timestep, repeated(condition, size));
    const at::Tensor error = row_losses(answer, made.target);
    require_finite_rows(error, "the prediction's error", std::vector<Drawing>(static_cast<size_t>(size), {prompt, 0}),
                        set.prompts);
    for (const double value : numbers(error)) errors.push_back(value);
  }
  return errors;
}

OptimisedStates optimise_states(int64_t prompt, const PromptSet& set, AuditedModel& model,
                                const OptimisationOptions& options) {
  const c10::AutoGradMode gradient(true);
  const c10::Device device = model.model.device();
  const Rows loaded = set.prompts.data().load({prompt});
  const at::Tensor x0 = loaded.latents.to(device);
  OptimisedStates found;
  found.condition = loaded.condition.to(device);
  if (options.from_empty) found.condition = found.condition.uncaptioned(set.prompts.data().null().to(device));
  found.condition.text = found.condition.text.to(at::kFloat).clone().requires_grad_(true);
  torch::optim::Adam optimizer({found.condition.text}, torch::optim::AdamOptions(options.learning_rate));
  for (int64_t step = 0; step < options.steps; ++step) {
    optimizer.zero_grad();
    double loss = 0;
    for (int64_t begin = 0; begin < options.batch; begin += options.rows) {
      const int64_t size = std::min(options.rows, options.batch - begin);
      const auto keys = place_keys(options.key, step * options.batch + begin, size);
      const at::Tensor noise =
          keyed_normal(options.seed, Stream::optimisation_noise, keys, set.prompts.data().latent_shape());
      const at::Tensor timestep =
          keyed_timesteps(options.seed, Stream::optimisation_timestep, keys, model.schedule.num_timesteps());
      const NoisedPicture made = noised(x0, noise.to(device), timestep.to(device), model.schedule);
      const at::Tensor answer = model.model.predict(made.noisy, made.timestep, repeated(found.condition, size));
      const at::Tensor part = row_losses(answer, made.target).sum() / static_cast<double>(options.batch);
      part.backward();
      require_finite_rows(part.view({1}), "the loss while its states are optimised", {{prompt, 0}}, set.prompts);
      loss += part.item<double>();
    }
    found.losses.push_back(loss);
    optimizer.step();
  }
  found.condition.text = found.condition.text.detach();
  return found;
}

at::Tensor draw_with(const Conditioning& condition, int64_t prompt, int64_t count, const PromptSet& set,
                     AuditedModel& model, uint64_t seed, int64_t rows) {
  std::vector<at::Tensor> drawn;
  const Conditioning null = set.prompts.data().null().to(model.model.device());
  for (int64_t begin = 0; begin < count; begin += rows) {
    const int64_t size = std::min(rows, count - begin);
    const at::Tensor noise =
        keyed_normal(seed, set.stream, place_keys(prompt, begin, size), set.prompts.data().latent_shape())
            .to(model.model.device());
    drawn.push_back(
        ddim_sample(model.schedule, model.predict(), noise, repeated(condition, size), null, model.sampling));
  }
  const at::Tensor all = at::cat(drawn);
  std::vector<Drawing> batch;
  for (int64_t i = 0; i < count; ++i) batch.push_back({.prompt = prompt, .picture = i});
  require_finite_rows(all, "what was drawn", batch, set.prompts);
  return all;
}

}  // namespace memsieve::audit
