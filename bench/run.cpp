#include "run.h"

#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <sys/resource.h>

#ifdef MEMSIEVE_WITH_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

#include <algorithm>
#include <chrono>

namespace memsieve::bench {

using namespace memsieve::trainer;

namespace {

double cpu_ms() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto ms = [](const timeval& t) { return 1e3 * double(t.tv_sec) + 1e-3 * double(t.tv_usec); };
  return ms(used.ru_utime) + ms(used.ru_stime);
}

TrainConfig config_of(const std::string& file, std::vector<std::string> overrides) {
  for (const char* more : {"validation.every=0", "sampling.every=0", "max_train_steps=1000000000"})
    overrides.emplace_back(more);
  TrainConfig config = read_config(file, overrides);
  if (config.sieve && config.settings.text("sieve.reference.kind") != "none") {
    overrides.emplace_back("sieve.reference.draws=2");
    config = read_config(file, overrides);
  }
  // Nothing is written, so a run that the configuration has made already must not stand in the way.
  config.output_dir += "/never-written";
  return config;
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

Run::Run(const std::string& file, const std::vector<std::string>& overrides, Group& group)
    : group_(group),
      config_(std::make_unique<TrainConfig>(config_of(file, overrides))),
      session_(std::make_unique<Session>(*config_, group, /*dry=*/true)),
      step_(std::make_unique<TrainStep>(session_->step_options(), session_->step_parts())) {
  if (session_->needs_reference()) session_->make_reference();
}

StepTime Run::steps(int64_t count, const std::function<void()>& before_each) {
  const auto begin = std::chrono::steady_clock::now();
  const double cpu = cpu_ms();
  at::Tensor first, last;
  for (int64_t i = 0; i < count; ++i) {
    if (before_each) before_each();
    last = step_->run(done_++);
    if (i == 0) first = last;
  }
  last = last.to(at::kCPU);  // waits for a GPU
  if (session_->sieve() != nullptr) session_->sieve()->take_reports();
  const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now() - begin;
  const auto n = static_cast<double>(count);
  const StepTime time{wall.count() / n, (cpu_ms() - cpu) / n};
  if (step_->failure()) std::rethrow_exception(step_->failure());
  first = first.to(at::kCPU);
  numbers_ = step_numbers({first.const_data_ptr<double>(), first.const_data_ptr<double>() + first.numel()});
  return time;
}

void Run::steps_without_waiting([[maybe_unused]] int64_t count) {
#ifdef MEMSIEVE_WITH_CUDA
  if (group_.device().is_cpu()) throw ConfigError("--sync-check needs a GPU");
  auto& state = c10::cuda::warning_state();
  const auto before = state.get_sync_debug_mode();
  state.set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
  try {
    for (int64_t i = 0; i < count; ++i) step_->run(done_++);
  } catch (...) {
    state.set_sync_debug_mode(before);
    throw;
  }
  state.set_sync_debug_mode(before);
  if (step_->failure()) std::rethrow_exception(step_->failure());
#else
  throw ConfigError("--sync-check needs a GPU");
#endif
}

}  // namespace memsieve::bench
