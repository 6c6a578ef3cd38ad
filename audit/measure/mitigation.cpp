#include <ATen/ATen.h>
#include <audit/measure/mitigation.h>
#include <audit/measure/rephrasing.h>
#include <c10/core/GradMode.h>
#include <memsieve/error.h>
#include <torch/optim/adamw.h>

#include <limits>
#include <memory>

namespace memsieve::audit {

namespace {

/// Guides step `number` given the magnitude of each picture there.
using Guide = std::function<at::Tensor(const DrawStep& step, const at::Tensor& magnitude)>;

Mitigated draw(const DrawingStart& start, AuditedModel& model, const Guide& guide) {
  std::vector<at::Tensor> steps;
  const auto hook = [&](const DrawStep& step) {
    steps.push_back(magnitude(step.captioned, step.null));
    return guide(step, steps.back());
  };
  Mitigated made;
  made.drawn =
      ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null, model.sampling, hook);
  made.magnitude = at::stack(steps, 1);
  return made;
}

Guide plain_guide(const AuditedModel& model) {
  return [guidance = model.sampling.guidance](const DrawStep& step, const at::Tensor&) {
    return guided(step.null, step.captioned, guidance);
  };
}

/// States of the captions that are moved, with all that belongs to the rows.
class MovedStates {
 public:
  MovedStates(const at::Tensor& text, const MitigationOptions& options)
      : options_(options),
        first_(text.narrow(1, 0, 1)),
        moved_(text.narrow(1, 1, text.size(1) - 1).clone().requires_grad_(true)),
        done_(at::zeros({text.size(0)}, text.options().dtype(at::kBool))),
        optimizer_({moved_}, torch::optim::AdamWOptions(options.learning_rate).weight_decay(0.01)),
        losses_(static_cast<size_t>(text.size(0))) {}

  at::Tensor text() const { return at::cat({first_, moved_.detach()}, 1); }
  const std::vector<std::vector<double>>& losses() const { return losses_; }

  /// Notes the loss of each row, and moves those that are above the target. False: none is.
  bool step(const at::Tensor& loss, const at::Tensor& gradient) {
    const auto values = numbers(loss);
    const at::Tensor was_done = done_.cpu();
    for (size_t i = 0; i < values.size(); ++i)
      if (!was_done[static_cast<int64_t>(i)].item<bool>()) losses_[i].push_back(values[i]);
    done_ = done_.logical_or(loss.detach() <= options_.target);
    if (done_.all().item<bool>()) return false;
    const at::Tensor before = moved_.detach().clone();
    moved_.mutable_grad() = gradient.narrow(1, 1, gradient.size(1) - 1).clone();
    optimizer_.step();
    const c10::NoGradGuard no_grad;
    moved_.copy_(at::where(done_.view({-1, 1, 1}), before, moved_));
    return true;
  }

 private:
  MitigationOptions options_;
  at::Tensor first_, moved_;
  /// [B] bool
  at::Tensor done_;
  torch::optim::AdamW optimizer_;
  std::vector<std::vector<double>> losses_;
};

std::vector<Variant> random_variants(const Prompts& prompts, int64_t prompt) {
  auto variants = prompts.variants(prompt, "random tokens");
  if (variants.empty())
    throw DataError(prompts.data().path() + ": prompt " + std::to_string(prompt) +
                    " has no variant with random tokens; make them with `memsieve prompts --random-tokens 4`, "
                    "or leave the method out");
  return variants;
}

}  // namespace

Mitigated draw_plainly(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                       const MitigationOptions& options) {
  return draw(start_of(prompts, batch, options.seed, options.stream, model.model.device()), model, plain_guide(model));
}

Mitigated draw_with_dynamic_guidance(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                     const MitigationOptions& options) {
  std::vector<at::Tensor> seen, guided_rows;
  const auto guide = [&](const DrawStep& step, const at::Tensor& d) {
    seen.push_back(d);
    const size_t n = seen.size();
    at::Tensor on = n > 1 ? guided_rows.back() : at::zeros_like(d, at::kBool);
    if (n > 2) on = on.logical_or((seen[n - 3] > seen[n - 2]).logical_and(seen[n - 2] < d));
    guided_rows.push_back(on);
    const at::Tensor guidance =
        at::where(on, at::full_like(d, model.sampling.guidance), at::ones_like(d)).view({-1, 1, 1, 1});
    return step.null + guidance * (step.captioned - step.null);
  };
  Mitigated made = draw(start_of(prompts, batch, options.seed, options.stream, model.model.device()), model, guide);
  const at::Tensor on = at::stack(guided_rows, 1).cpu();
  const int64_t steps = on.size(1);
  for (int64_t i = 0; i < on.size(0); ++i) {
    const auto guided_steps = on[i].sum().item<int64_t>();
    made.notes.push_back({{"guided_from", guided_steps > 0 ? Json(steps - guided_steps) : Json(nullptr)}});
  }
  return made;
}

Mitigated draw_with_moved_states(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                 const MitigationOptions& options) {
  DrawingStart start = start_of(prompts, batch, options.seed, options.stream, model.model.device());
  MovedStates states(start.condition.text, options);
  bool moving = options.updates > 0;
  for (int64_t update = 0; moving && update < options.updates; ++update) {
    start.condition.text = states.text();
    const auto hook = [&](const DrawStep& step) {
      const at::Tensor d = magnitude(step.captioned, step.null);
      d.sum().backward();
      require_finite_rows(d, "the magnitude", batch, prompts);
      moving = states.step(d, step.condition.text.grad());
      return step.null;
    };
    ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null, model.sampling, hook,
                {.first_steps = 1, .gradient = true});
  }
  start.condition.text = states.text();
  Mitigated made = draw(start, model, plain_guide(model));
  for (const auto& losses : states.losses()) made.notes.push_back({{"losses", losses}});
  return made;
}

Mitigated draw_with_random_tokens(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                  const MitigationOptions& options) {
  std::vector<Drawing> varied = batch;
  std::vector<Json> notes;
  for (Drawing& drawing : varied) {
    const auto variants = random_variants(prompts, drawing.prompt);
    drawing.row = variants[static_cast<size_t>(drawing.picture) % variants.size()].row;
    notes.push_back({{"caption", prompts.data().captions({drawing.row}).front()}});
  }
  Mitigated made = draw_plainly(varied, prompts, model, options);
  made.notes = std::move(notes);
  return made;
}

TextAttentionEdit attention_edit(const std::vector<int64_t>& end_tokens, int64_t length, double first_token_scale,
                                 c10::Device device) {
  const auto rows = static_cast<int64_t>(end_tokens.size());
  at::Tensor scale = at::ones({2 * rows, length}), bias = at::zeros({2 * rows, length});
  scale.narrow(0, rows, rows).select(1, 0).fill_(first_token_scale);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t seen = std::min(length, end_tokens[static_cast<size_t>(i)] + 1);
    for (const int64_t row : {i, rows + i})
      bias[row].narrow(0, seen, length - seen).fill_(-std::numeric_limits<float>::infinity());
  }
  return {.scale = scale.to(device), .bias = bias.to(device)};
}

Mitigated draw_with_edited_attention(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                     const MitigationOptions& options) {
  prompts.require_tokens("the method 'attention'");
  const TextAttentionEdit edit = attention_edit(end_tokens(batch, prompts), prompts.data().text_length(),
                                                options.first_token_scale, model.model.device());
  const EditTextAttention editing(edit);
  return draw_plainly(batch, prompts, model, options);
}

const std::vector<Mitigation>& mitigations() {
  static const std::vector<Mitigation> all = {{"none", draw_plainly},
                                              {"dynamic_guidance", draw_with_dynamic_guidance},
                                              {"embedding", draw_with_moved_states},
                                              {"random_tokens", draw_with_random_tokens},
                                              {"attention", draw_with_edited_attention},
                                              {"rephrased", draw_rephrased}};
  return all;
}

void require_drawable(const std::vector<const Mitigation*>& methods, const Prompts& prompts,
                      const std::vector<int64_t>& rows) {
  for (const Mitigation* method : methods) {
    if (method->name == "attention") prompts.require_tokens("the method 'attention'");
    for (const int64_t row : rows) {
      if (method->name == "random_tokens") random_variants(prompts, row);
      if (method->name == "rephrased") wordings_of(prompts, row);
    }
  }
}

at::Tensor unit_pixels(const at::Tensor& pictures) {
  const at::Tensor flat = pictures.to(at::kFloat).flatten(1);
  const at::Tensor centred = flat - flat.mean(1, true);
  return centred / centred.norm(2, {1}, true).clamp_min(1e-6);
}

at::Tensor correlation(const at::Tensor& pictures, const at::Tensor& others) {
  return (unit_pixels(pictures) * unit_pixels(others)).sum(1);
}

}  // namespace memsieve::audit
