#pragma once
// What the timings share: a run that is stepped from outside, clocks, medians.

#include <runtime/group.h>
#include <trainer/config/train_config.h>
#include <trainer/loop/train_step.h>

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
  /// model finds easy (once, whatever `sieve.reference.draws` says: that is not part of a step).
  Run(const std::string& file, const std::vector<std::string>& overrides, trainer::Group& group);

  /// COLLECTIVE. The next `count` steps, to the end of what the device has to do for them.
  StepTime steps(int64_t count, const std::function<void()>& before_each = {});
  /// Of the first of the steps that were last run.
  const trainer::StepNumbers& numbers() const { return numbers_; }

  trainer::Session& session() { return *session_; }
  trainer::TrainStep& step() { return *step_; }
  /// steps run so far
  int64_t done() const { return done_; }

 private:
  /// the session refers to it, wherever this run moves
  std::unique_ptr<trainer::TrainConfig> config_;
  std::unique_ptr<trainer::Session> session_;
  std::unique_ptr<trainer::TrainStep> step_;
  trainer::StepNumbers numbers_;
  int64_t done_ = 0;
};

/// Runs `body` with what the command line and torchrun's variables say; prints errors and returns the exit code.
/// `device` is the current one meanwhile.
int with_group(const std::string& wish, const std::function<void(trainer::Group&)>& body);

}  // namespace memsieve::bench
