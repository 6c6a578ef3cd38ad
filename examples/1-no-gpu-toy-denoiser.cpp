// The smallest loop with a sieve: one process, no GPU, a toy denoiser, the configuration as text. A sixteenth of the
// rows are one picture; at the end it prints which rows were dropped.
#include <memsieve/memsieve.h>

#include <cstdio>

#include "toy_denoiser.h"

static const char* const kYaml = R"(
sieve:
  filters: {magnitude: {scale: log}, prediction_error: {scale: log}}
  standardise: {by: timestep, population: training, bins: 5, window: 200}
  evidence: {kind: ledger, visits: 8, min_visits: 4}
  threshold: {kind: fixed, drop: 6, release: 4}
  action: {kind: drop, warmup_steps: 60}
)";

int main() try {
  const int64_t rows = 32, steps = 400;
  toy::Data data = toy::make_data();
  toy::Denoiser model;
  toy::AdamW optimizer(model.parameters, 2e-3);
  at::manual_seed(3);
  at::Tensor visits = at::zeros({toy::kSamples}), dropped = at::zeros({toy::kSamples});

  // [readme]
  memsieve::Setup setup;
  setup.filters = memsieve::builtin_filters();
  setup.dataset_size = toy::kSamples;
  setup.rows_per_micro_batch = rows;
  auto sieve = memsieve::Sieve::from_text(kYaml, "toy.yaml", std::make_shared<memsieve::SoloComm>(), setup);

  for (int64_t step = 0; step < steps; ++step) {
    at::Tensor ids = at::randint(toy::kSamples, {rows}, at::kLong);
    at::Tensor t = at::randint(toy::kSteps, {rows}, at::kLong);
    at::Tensor pictures = data.pictures.index_select(0, ids), text = data.text.index_select(0, ids);
    auto [noisy, target] = toy::add_noise(pictures, at::randn_like(pictures), t);

    at::Tensor prediction = model(noisy, t, text);
    // The same model on rows k, with the empty caption.
    auto null_rows = [&, noisy = noisy](const at::Tensor& k) {
      return model(noisy.index_select(0, k), t.index_select(0, k), data.no_text.expand({k.size(0), 16}));
    };
    memsieve::Plan plan = sieve.inspect({ids, t, prediction, target, null_rows, {}}, {step, 0});
    plan.loss((prediction - target).square().flatten(1).mean(1)).backward();
    optimizer.step(sieve.end_step({step, 0}, model.gradients()));
    // [/readme]
    visits.index_add_(0, ids, at::ones({rows}));
    dropped.index_add_(0, ids, plan.weight().eq(0).to(at::kFloat));
    if (step % 50 == 49) {
      for (const memsieve::StepReport& report : sieve.take_reports()) {
        if (report.step == step)
          std::printf("step %3ld: %ld of %ld rows dropped\n", report.step, report.dropped, report.rows);
      }
    }
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
