// A program outside memsieve's tree: reads a configuration (`uses-memsieve sieve.yaml`), plug-ins included, and runs
// the sieve on a model that is one tensor.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/memsieve.h>

#include <cstdio>

int main(int argc, char** argv) try {
  if (argc != 2) throw memsieve::ConfigError("usage: uses-memsieve FILE.yaml");
  const int64_t rows = 16, samples = 64;
  memsieve::Setup setup;
  setup.filters = memsieve::builtin_filters();
  setup.dataset_size = samples;
  setup.rows_per_micro_batch = rows;
  auto sieve = memsieve::Sieve::from_yaml(argv[1], std::make_shared<memsieve::SoloComm>(), setup);

  at::manual_seed(1);
  // "predicts" the target of each sample by heart
  at::Tensor model = at::zeros({samples, 8}).set_requires_grad(true);
  at::Tensor targets = at::randn({samples, 8});
  int64_t seen = 0, dropped = 0;
  for (int64_t step = 0; step < 200; ++step) {
    at::Tensor ids = at::randint(samples, {rows}, at::kLong), t = at::randint(1000, {rows}, at::kLong);
    at::Tensor prediction = model.index_select(0, ids), target = targets.index_select(0, ids);
    auto null_rows = [&](const at::Tensor& k) { return at::zeros({k.size(0), 8}); };
    memsieve::Plan plan = sieve.inspect({ids, t, prediction, target, null_rows, {}}, {step, 0});
    plan.loss((prediction - target).square().mean(1)).backward();
    memsieve::StepEnd end = sieve.end_step({step, 0});
    at::NoGradGuard no_grad;
    model.sub_(model.grad() / end.grad_scale * (1 - end.skip), 20.0);
    model.mutable_grad() = at::Tensor();
    for (const memsieve::StepReport& report : sieve.take_reports()) seen += report.rows, dropped += report.dropped;
  }
  std::printf("filters:");
  for (const std::string& name : sieve.channels()) std::printf(" %s", name.c_str());
  std::printf("; %ld of %ld rows dropped\n", dropped, seen);
  return 0;
} catch (const memsieve::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
