// The steps of a loop that has a sieve and no model, for bench/python_overhead.py, which makes the same from Python.
//   memsieve-bench-sieve-steps RULE.yaml GRADIENTS
// What a model would predict lies ready, of kMemorised samples nearly the target, and so do GRADIENTS gradients of one
// number each. Answers numbers on its input: N makes N steps and prints one line of JSON.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/memsieve.h>

#include <chrono>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

namespace {

using namespace memsieve;

constexpr int64_t kRows = 4, kSamples = 64, kMemorised = 7, kHeldOut = 16, kTimesteps = 1000,
                  kMostPassedOver = 8 * kRows;

Setup setup() {
  Setup setup;
  setup.filters = builtin_filters();
  setup.dataset_size = kSamples;
  setup.rows_per_micro_batch = kRows;
  setup.num_timesteps = kTimesteps;
  setup.held_out_size = kHeldOut;
  return setup;
}

class Loop {
 public:
  Loop(const std::string& rule, int64_t gradients)
      : sieve_(Sieve::from_yaml(rule, std::make_shared<SoloComm>(), setup())) {
    at::manual_seed(0);
    for (auto* of_all : {&prediction_, &target_, &start_}) *of_all = at::randn({kSamples + kHeldOut, 4, 32, 32});
    prediction_.narrow(0, 0, kMemorised).mul_(0.1).add_(target_.narrow(0, 0, kMemorised));
    likeness_ = at::randn({kSamples + kHeldOut, 32});
    for (int64_t i = 0; i < gradients; ++i) gradients_.push_back(at::ones({1}));
  }

  void step() {
    const std::vector<int64_t> chosen = next_batch();
    const Clock clock{step_, epoch_};
    const at::Tensor which = at::tensor(chosen, at::kLong);
    const at::Tensor timesteps = (which * 37 + step_) % kTimesteps;
    const at::Tensor prediction = prediction_.index_select(0, which) * gain_;
    const Plan plan = sieve_.inspect(batch(which, which, timesteps, prediction), clock);
    plan.loss((prediction - target_.index_select(0, which)).square().mean({1, 2, 3})).backward();
    observe(clock);
    look(clock);
    sieve_.end_step(clock, gradients_);
    gain_.mutable_grad().reset();
    ++step_;
  }

  /// Sums over the steps since the last call: what the loops of both languages must agree on.
  nlohmann::json decided() {
    int64_t probed = 0, dropped = 0, passed_over = 0;
    for (const auto& report : sieve_.take_reports())
      probed += report.probed, dropped += report.dropped, passed_over += report.passed_over;
    return {{"probed", probed}, {"dropped", dropped}, {"passed_over", passed_over}};
  }

 private:
  /// As python/memsieve/batches.py: only so many are passed over, and the rest of an epoch that fills no batch is left.
  std::vector<int64_t> next_batch() {
    const at::Tensor flags = sieve_.flagged(step_);
    for (;; ++epoch_, position_ = 0) {
      std::vector<int64_t> ids, passed_over;
      while (std::ssize(ids) < kRows && position_ < kSamples) {
        const int64_t id = position_++;
        const bool passed = flags.const_data_ptr<bool>()[id] && std::ssize(passed_over) < kMostPassedOver;
        (passed ? passed_over : ids).push_back(id);
      }
      if (!passed_over.empty()) sieve_.pass_over(passed_over, {step_, epoch_});
      if (std::ssize(ids) == kRows) return ids;
    }
  }

  Batch batch(const at::Tensor& ids, const at::Tensor& which, const at::Tensor& timesteps,
              const at::Tensor& prediction) const {
    Batch batch;
    batch.sample_id = ids;
    batch.timestep = timesteps;
    batch.prediction = prediction;
    batch.target = target_.index_select(0, which);
    batch.likeness = likeness_.index_select(0, which);
    batch.counterfactuals["start"] = [this, which](const at::Tensor& rows) {
      return start_.index_select(0, which.index_select(0, rows));
    };
    return batch;
  }

  void observe(const Clock& clock) {
    const at::NoGradGuard no_grad;
    std::vector<int64_t> ids, pictures, timesteps;
    for (const auto& visit : sieve_.held_out_visits(clock.step)) {
      ids.push_back(visit.id);
      pictures.push_back(kSamples + visit.picture);
      timesteps.push_back(static_cast<int64_t>(visit.timestep_fraction * kTimesteps));
    }
    if (ids.empty()) return;
    const at::Tensor which = at::tensor(pictures, at::kLong);
    const at::Tensor prediction = prediction_.index_select(0, which) * gain_;
    sieve_.observe(batch(at::tensor(ids, at::kLong), which, at::tensor(timesteps, at::kLong), prediction), clock);
  }

  void look(const Clock& clock) {
    const at::NoGradGuard no_grad;
    std::vector<int64_t> ids, timesteps;
    for (const auto& look : sieve_.looks(clock.step)) {
      ids.push_back(look.id);
      timesteps.push_back(static_cast<int64_t>(look.timestep_fraction * kTimesteps));
    }
    if (ids.empty()) return;
    const at::Tensor which = at::tensor(ids, at::kLong);
    const at::Tensor prediction = prediction_.index_select(0, which) * gain_;
    sieve_.look(batch(which, which, at::tensor(timesteps, at::kLong), prediction), clock);
  }

  Sieve sieve_;
  at::Tensor prediction_, target_, start_, likeness_;
  at::Tensor gain_ = at::ones({}).requires_grad_();
  std::vector<at::Tensor> gradients_;
  int64_t step_ = 0, epoch_ = 0, position_ = 0;
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) throw ConfigError("usage: memsieve-bench-sieve-steps RULE.yaml GRADIENTS");
  Loop loop(argv[1], std::stoll(argv[2]));
  std::cout << "{}" << std::endl;
  for (int64_t count = 0; std::cin >> count && count > 0;) {
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < count; ++i) loop.step();
    const std::chrono::duration<double, std::milli> wall = std::chrono::steady_clock::now() - begin;
    nlohmann::json answer = loop.decided();
    answer["wall_ms"] = wall.count() / static_cast<double>(count);
    std::cout << answer.dump() << std::endl;
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "memsieve-bench-sieve-steps: " << error.what() << "\n";
  return 2;
}
