#include "run.h"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <memsieve/error.h>
#include <sys/resource.h>
#include <runtime/launch.h>
#include <runtime/heap.h>
#include <runtime/log.h>
#include <trainer/loop/reference_pass.h>
#include <trainer/loop/train.h>
#include <runtime/torch_warnings.h>

#include <algorithm>
#include <chrono>
#include <iostream>

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
  if (!config.sieve || config.settings.text("sieve.reference.kind") == "none") return config;
  overrides.emplace_back("sieve.reference.draws=1");
  return read_config(file, overrides);
}

}  // namespace

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

Run::Run(const std::string& file, const std::vector<std::string>& overrides, Group& group)
    : config_(std::make_unique<TrainConfig>(config_of(file, overrides))),
      session_(std::make_unique<Session>(*config_, group, /*dry=*/true)),
      step_(std::make_unique<TrainStep>(*session_)) {
  Session& s = *session_;
  if (s.sieve && s.sieve->reference_draws() > 0)
    reference_pass(*s.sieve, *s.model, *s.training, s.held_out ? &*s.held_out : nullptr, group, *config_);
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
  if (session_->sieve) session_->sieve->take_reports();
  const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now() - begin;
  const auto n = static_cast<double>(count);
  const StepTime time{wall.count() / n, (cpu_ms() - cpu) / n};
  if (step_->failure()) std::rethrow_exception(step_->failure());
  first = first.to(at::kCPU);
  numbers_ = step_numbers({first.const_data_ptr<double>(), first.const_data_ptr<double>() + first.numel()});
  return time;
}

int with_group(const std::string& wish, const std::function<void(Group&)>& body) {
  keep_freed_memory();
  try {
    const Launch launch = launch_from_environment();
    log_as(launch.rank, launch.world_size);
    route_torch_warnings();
    const c10::Device device = choose_device(launch, wish);
    c10::OptionalDeviceGuard guard;
    if (!device.is_cpu()) guard.reset_device(device);
    Group group(launch, device, {});
    body(group);
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return exit_code_of(error);
  }
}

}  // namespace memsieve::bench
