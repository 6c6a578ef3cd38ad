#include <ATen/ATen.h>
#include <audit/measure/known_picture.h>
#include <audit/measure/prediction_error.h>
#include <c10/core/GradMode.h>
#include <diffusion/data/rows.h>
#include <torch/optim/adam.h>

#include <algorithm>

namespace memsieve::audit {

void for_search_noise(const SearchNoise& search, int64_t step, at::IntArrayRef shape, const AuditedModel& model,
                      const std::function<void(const at::Tensor& noise, const at::Tensor& timestep)>& show) {
  const c10::Device device = model.model.device();
  for (int64_t begin = 0; begin < search.batch; begin += search.rows) {
    const auto keys = place_keys(search.key, step * search.batch + begin, std::min(search.rows, search.batch - begin));
    show(keyed_normal(search.seed, search.noise, keys, shape).to(device),
         keyed_timesteps(search.seed, search.timestep, keys, model.schedule.num_timesteps()).to(device));
  }
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
    const auto take = [&](const at::Tensor& noise, const at::Tensor& timestep) {
      const NoisedPictures made = noised(x0, noise, timestep, model.schedule);
      const at::Tensor answer =
          model.model.predict(made.noisy, made.timestep, repeated(found.condition, noise.size(0)));
      const at::Tensor part = row_losses(answer, made.target).sum() / static_cast<double>(options.batch);
      part.backward();
      require_finite_rows(part.view({1}), "the loss while its states are optimised", {{prompt, 0}}, set.prompts);
      loss += part.item<double>();
    };
    for_search_noise({.seed = options.seed, .key = options.key, .batch = options.batch, .rows = options.rows}, step,
                     set.prompts.data().latent_shape(), model, take);
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
  at::Tensor all = at::cat(drawn);
  std::vector<Drawing> batch;
  for (int64_t i = 0; i < count; ++i) batch.push_back({.prompt = prompt, .picture = i});
  require_finite_rows(all, "what was drawn", batch, set.prompts);
  return all;
}

}  // namespace memsieve::audit
