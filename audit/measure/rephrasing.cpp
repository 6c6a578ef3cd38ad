#include <ATen/ATen.h>
#include <audit/measure/explanation.h>
#include <audit/measure/rephrasing.h>
#include <memsieve/error.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// The batch with the wording that each drawing takes; row -1 = the prompt as it is.
std::vector<Drawing> with_wordings(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                   const MitigationOptions& options) {
  std::vector<Drawing> chosen = batch;
  std::vector<std::vector<int64_t>> wordings;
  wordings.reserve(batch.size());
  for (const Drawing& drawing : batch) wordings.push_back(wordings_of(prompts, drawing.prompt));
  std::vector<double> lowest = first_magnitudes(batch, prompts, model, options.seed, options.stream);
  for (size_t number = 0;; ++number) {
    const auto open = [&](size_t i) { return lowest[i] > options.rephrased_target && number < wordings[i].size(); };
    std::vector<Drawing> asked;
    std::vector<size_t> places;
    for (size_t i = 0; i < batch.size(); ++i) {
      if (!open(i)) continue;
      asked.push_back(batch[i]);
      asked.back().row = wordings[i][number];
      places.push_back(i);
    }
    if (asked.empty()) return chosen;
    const auto found = first_magnitudes(asked, prompts, model, options.seed, options.stream);
    for (size_t j = 0; j < asked.size(); ++j) {
      if (number > 0 && found[j] >= lowest[places[j]]) continue;
      lowest[places[j]] = found[j];
      chosen[places[j]].row = asked[j].row;
    }
  }
}

}  // namespace

std::vector<int64_t> wordings_of(const Prompts& prompts, int64_t prompt) {
  std::vector<int64_t> rows;
  for (const Variant& variant : prompts.variants(prompt, "rephrased")) rows.push_back(variant.row);
  if (!rows.empty()) return rows;
  throw DataError(prompts.data().path() + ": prompt " + std::to_string(prompt) +
                  " has no other wording; prepare some with `memsieve prompts --rephrased`, or leave the method out");
}

Mitigated draw_rephrased(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                         const MitigationOptions& options) {
  const double s = model.sampling.guidance, a = options.repulsion_from, b = options.repulsion_full;
  const double k = (a * s - b) / (s - 1);
  const std::vector<Drawing> chosen = with_wordings(batch, prompts, model, options);
  std::vector<int64_t> replaced;
  replaced.reserve(chosen.size());
  for (const Drawing& drawing : chosen) replaced.push_back(drawing.row < 0 ? 0 : 1);
  const c10::Device device = model.model.device();
  const at::Tensor reworded = at::tensor(replaced, at::kLong).to(device).to(at::kBool);
  const Conditioning own = start_of(prompts, batch, options.seed, options.stream, device).condition;
  const DrawingStart start = start_of(prompts, chosen, options.seed, options.stream, device);
  std::vector<at::Tensor> steps;
  const auto hook = [&](const DrawStep& step) {
    const at::Tensor m = magnitude(step.captioned, step.null);
    steps.push_back(m);
    at::Tensor plain = guided(step.null, step.captioned, s);
    const at::Tensor strong = reworded.logical_and(m > a);
    if (!strong.any().item<bool>()) return plain;
    const at::Tensor t = timestep_tensor(model.schedule, step.timestep, device).expand({step.x.size(0)});
    const at::Tensor prompt = model.model.predict(step.x, t, own);
    const at::Tensor part = (s * (m - k) / (b - k)).clamp_max(s).view({-1, 1, 1, 1});
    const at::Tensor repelled = prompt + part * (step.captioned - prompt) + (s - part) * (step.captioned - step.null);
    return at::where(strong.view({-1, 1, 1, 1}), repelled, plain);
  };
  Mitigated made;
  made.drawn =
      ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null, model.sampling, hook);
  made.magnitude = at::stack(steps, 1);
  for (const Drawing& drawing : chosen)
    made.notes.push_back(
        {{"caption", drawing.row < 0 ? Json(nullptr) : Json(prompts.data().captions({drawing.row}).front())}});
  return made;
}

}  // namespace memsieve::audit
