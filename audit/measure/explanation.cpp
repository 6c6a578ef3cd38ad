#include <ATen/ATen.h>
#include <audit/measure/explanation.h>

namespace memsieve::audit {

std::vector<Json> explain_drawings(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                   uint64_t seed, int64_t steps) {
  const DrawingStart start = start_of(prompts, batch, seed, Stream::draw_noise, model.model.device());
  std::vector<at::Tensor> magnitudes, gradients;
  const auto hook = [&](const DrawStep& step) {
    const at::Tensor d = magnitude(step.captioned, step.null);
    // No picture's magnitude depends on another's states, so that the gradient of the sum holds that of each.
    d.sum().backward();
    magnitudes.push_back(d.detach());
    gradients.push_back(step.condition.text.grad().to(at::kFloat).norm(2, {2}));
    return guided(step.null, step.captioned.detach(), model.sampling.guidance);
  };
  ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null, model.sampling, hook,
              {.first_steps = steps, .gradient = true});
  const at::Tensor d = at::stack(magnitudes, 1).cpu(), g = at::stack(gradients, 1).cpu();
  require_finite_rows(d, "the magnitude", batch, prompts);
  require_finite_rows(g, "the gradient of the magnitude", batch, prompts);
  std::vector<Json> rows;
  for (int64_t i = 0; i < d.size(0); ++i) {
    Json row{{"set", "prompts"},
             {"prompt", batch[static_cast<size_t>(i)].prompt},
             {"picture_number", batch[static_cast<size_t>(i)].picture},
             {"magnitude", numbers(d[i])}};
    for (int64_t step = 0; step < g.size(1); ++step) row["gradient"].push_back(numbers(g[i][step]));
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<double> first_magnitudes(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                     uint64_t seed, Stream stream) {
  const DrawingStart start = start_of(prompts, batch, seed, stream, model.model.device());
  at::Tensor d;
  const auto hook = [&](const DrawStep& step) {
    d = magnitude(step.captioned, step.null);
    return guided(step.null, step.captioned, model.sampling.guidance);
  };
  ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null, model.sampling, hook,
              {.first_steps = 1});
  require_finite_rows(d, "the magnitude", batch, prompts);
  return numbers(d);
}

}  // namespace memsieve::audit
