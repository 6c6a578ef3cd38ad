#pragma once
// What the timings share: a run that is stepped from outside, clocks, medians.

#include <runtime/group.h>
#include <trainer/config/train_config.h>
#include <trainer/loop/session.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace memsieve::bench {

/// Of at least one value.
double median(std::vector<double> values);

/// What some steps took, each on average.
struct StepTime {
  double wall_ms = 0;
  /// of all threads of this process
  double cpu_ms = 0;
};

/// A training run of a configuration that touches no run folder. Neither validation nor drawing happens.
class Run {
 public:
  /// COLLECTIVE. Reads the configuration, builds everything and, if the sieve asks for it, shows it what the starting
  /// model finds easy (two draws, whatever `sieve.reference.draws` says: that is not part of a step).
  Run(const std::string& file, const std::vector<std::string>& overrides, runtime::Group& group);

  /// COLLECTIVE. The next `count` steps, to the end of what the device has to do for them.
  StepTime steps(int64_t count, const std::function<void()>& before_each = {});
  /// COLLECTIVE. The next `count` steps, in which a call that makes the host wait for the GPU's stream is an error
  /// (CUDA's synchronisation debug mode). Throws ConfigError on a CPU.
  void steps_without_waiting(int64_t count);
  /// Of the first of the steps that were last run.
  const trainer::StepNumbers& numbers() const { return numbers_; }

  trainer::Session& session() { return *session_; }
  trainer::TrainStep& step() { return *step_; }
  /// steps run so far
  int64_t done() const { return done_; }

 private:
  runtime::Group& group_;
  /// the session refers to it, wherever this run moves
  std::unique_ptr<trainer::TrainConfig> config_;
  std::unique_ptr<trainer::Session> session_;
  std::unique_ptr<trainer::TrainStep> step_;
  trainer::StepNumbers numbers_;
  int64_t done_ = 0;
};

}  // namespace memsieve::bench
