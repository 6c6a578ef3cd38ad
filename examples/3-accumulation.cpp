// Gradient accumulation: one optimiser step of four micro-batches. The sieve divides by what was kept over all of them,
// so the result is that of one batch four times as large. The program checks that.
#include <memsieve/memsieve.h>

#include <cstdio>

#include "toy_denoiser.h"

// The published rule with a low threshold, so that much is dropped.
static const char* const kYaml = R"(
sieve:
  filters: {magnitude: {norm: l2}}
  standardise: {by: none}
  evidence: {kind: visit}
  threshold: {kind: fixed, drop: 3.0}
  action: {kind: drop}
)";

struct Result {
  at::Tensor weights;
  int64_t dropped = 0, rows = 0;
};

static Result train(int64_t micro_batches) {
  const int64_t steps = 60, batch = 32, rows = batch / micro_batches;
  toy::Data data = toy::make_data();
  toy::Denoiser model;
  toy::AdamW optimizer(model.parameters, 2e-3);
  memsieve::Setup setup;
  setup.filters = memsieve::builtin_filters();
  setup.dataset_size = toy::kSamples;
  setup.rows_per_micro_batch = rows;
  setup.micro_batches = micro_batches;
  auto sieve = memsieve::Sieve::from_text(kYaml, "accumulation.yaml", std::make_shared<memsieve::SoloComm>(), setup);

  Result result;
  at::manual_seed(3);
  for (int64_t step = 0; step < steps; ++step) {
    at::Tensor ids = at::randint(toy::kSamples, {batch}, at::kLong), t = at::randint(toy::kSteps, {batch}, at::kLong);
    at::Tensor pictures = data.pictures.index_select(0, ids), noise = at::randn_like(pictures);
    for (int64_t micro = 0; micro < micro_batches; ++micro) {
      auto part = [&](const at::Tensor& all) { return all.narrow(0, micro * rows, rows); };
      auto [noisy, target] = toy::add_noise(part(pictures), part(noise), part(t));
      at::Tensor prediction = model(noisy, part(t), data.text.index_select(0, part(ids)));
      auto null_rows = [&, noisy = noisy](const at::Tensor& k) {
        return model(noisy.index_select(0, k), part(t).index_select(0, k), data.no_text.expand({k.size(0), 16}));
      };
      memsieve::Plan plan = sieve.inspect({part(ids), part(t), prediction, target, null_rows, {}}, {step, 0});
      plan.loss((prediction - target).square().flatten(1).mean(1))
          .backward();  // gradients add up over the micro-batches
    }
    optimizer.step(sieve.end_step({step, 0}, model.gradients()));  // once per optimiser step
  }
  sieve.flush();
  for (const memsieve::StepReport& report : sieve.take_reports()) {
    result.dropped += report.dropped;
    result.rows += report.rows;
  }
  result.weights = model.parameters[0].detach();
  return result;
}

int main() try {
  Result whole = train(1), accumulated = train(4);
  double difference = (whole.weights - accumulated.weights).abs().max().item<double>();
  std::printf("1 x 32 rows: %ld of %ld dropped; 4 x 8 rows: %ld of %ld dropped; weights differ by at most %.1e\n",
              whole.dropped, whole.rows, accumulated.dropped, accumulated.rows, difference);
  return whole.dropped == accumulated.dropped && difference < 1e-4 ? 0 : 1;
} catch (const memsieve::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
