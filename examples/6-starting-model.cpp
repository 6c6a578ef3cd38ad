// Fine-tuning with the signal `start_gap`: how much better than the starting model, a frozen copy, each row is
// predicted. A model that knows the ordinary rows is fine-tuned on them and on a picture that stands among them 64
// times; at the end it prints which rows were dropped.
#include <ATen/core/grad_mode.h>
#include <memsieve/memsieve.h>

#include <cstdio>

#include "toy_denoiser.h"

static const char* const kYaml = R"(
sieve:
  filters: {start_gap: {}}
  standardise: {by: timestep, population: training, bins: 5, window: 200}
  evidence: {kind: ledger, visits: 8, min_visits: 2}
  threshold: {kind: fixed, drop: 6, release: 4}
  probe: {kind: budget, fraction: 0.5}
)";

namespace {

constexpr int64_t kRows = 32;

/// Rows of samples from `first` on, noised.
struct Rows {
  Rows(const toy::Data& data, int64_t first)
      : ids(at::randint(first, toy::kSamples, {kRows}, at::kLong)),
        t(at::randint(toy::kSteps, {kRows}, at::kLong)),
        text(data.text.index_select(0, ids)) {
    const at::Tensor pictures = data.pictures.index_select(0, ids);
    noised = toy::add_noise(pictures, at::randn_like(pictures), t);
  }
  at::Tensor ids, t, text;
  toy::Noised noised;
};

at::Tensor row_losses(const at::Tensor& prediction, const at::Tensor& target) {
  return (prediction - target).square().flatten(1).mean(1);
}

/// The base model: trained without the repeated picture, and without a sieve.
toy::Denoiser pretrained(const toy::Data& data, int64_t steps) {
  toy::Denoiser model;
  toy::AdamW optimizer(model.parameters, 2e-3);
  const memsieve::StepEnd plain{at::ones({}), at::zeros({})};
  for (int64_t step = 0; step < steps; ++step) {
    const Rows rows(data, toy::kRepeated);
    row_losses(model(rows.noised.noisy, rows.t, rows.text), rows.noised.target).mean().backward();
    optimizer.step(plain);
  }
  return model;
}

}  // namespace

int main() try {
  at::manual_seed(3);
  const toy::Data data = toy::make_data();
  toy::Denoiser model = pretrained(data, 400);
  toy::AdamW optimizer(model.parameters, 2e-3);
  at::Tensor visits = at::zeros({toy::kSamples}), dropped = at::zeros({toy::kSamples});

  memsieve::Setup setup;
  setup.filters = memsieve::builtin_filters();
  setup.dataset_size = toy::kSamples;
  setup.rows_per_micro_batch = kRows;
  auto sieve = memsieve::Sieve::from_text(kYaml, "toy.yaml", std::make_shared<memsieve::SoloComm>(), setup);

  // The starting model: copied once, before training. With adapters it needs no copy, but the model with them off.
  toy::Denoiser start = model;
  for (at::Tensor& p : start.parameters) p = p.detach().clone();

  for (int64_t step = 0; step < 400; ++step) {
    const Rows rows(data, 0);
    at::Tensor prediction = model(rows.noised.noisy, rows.t, rows.text);
    memsieve::Batch batch{rows.ids, rows.t, prediction, rows.noised.target, {}, {}};
    batch.counterfactuals["start"] = [&](const at::Tensor& k) {  // the same noised rows, without gradient
      const at::NoGradGuard no_grad;
      return start(rows.noised.noisy.index_select(0, k), rows.t.index_select(0, k), rows.text.index_select(0, k));
    };
    memsieve::Plan plan = sieve.inspect(batch, {step, 0});
    plan.loss(row_losses(prediction, rows.noised.target)).backward();
    optimizer.step(sieve.end_step({step, 0}, model.gradients()));
    visits.index_add_(0, rows.ids, at::ones({kRows}));
    dropped.index_add_(0, rows.ids, plan.weight().eq(0).to(at::kFloat));
  }
  auto share = [&](int64_t from, int64_t length) {
    return 100 * dropped.narrow(0, from, length).sum().item<double>() /
           visits.narrow(0, from, length).sum().item<double>();
  };
  std::printf("dropped: %.0f%% of the visits of the repeated picture, %.0f%% of the others\n", share(0, toy::kRepeated),
              share(toy::kRepeated, toy::kSamples - toy::kRepeated));
  return 0;
} catch (const memsieve::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
