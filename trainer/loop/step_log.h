#pragma once
// What the steps tell: metrics.jsonl, TensorBoard and the line of progress.

#include <diffusion/data/sampler.h>
#include <memsieve/sieve.h>
#include <runtime/log.h>
#include <trainer/loop/step_numbers.h>
#include <trainer/metrics/metrics.h>
#include <trainer/trainer_rooms.h>

#include <chrono>
#include <deque>
#include <map>
#include <string>

namespace memsieve::trainer {

class StepLog {
 public:
  using Time = std::chrono::steady_clock::time_point;

  struct Options {
    int64_t max_train_steps = 0;
    /// steps between lines where the log is no terminal
    int64_t log_every = 1;
    /// the line of progress tells the loss of the rows to forget
    bool forgets = false;
  };
  /// `sieve`: null = none. All references must outlive the log.
  StepLog(const Options& options, MetricsWriter& metrics, Sieve* sieve, const Sampler& sampler);

  /// Step `step` begins now, in that epoch.
  void begin(int64_t step, int64_t epoch);
  /// Its numbers arrived. A step lasts from its beginning, or from the end of the one before if the GPU was still at
  /// that, until its numbers arrive.
  void add(int64_t step, const StepNumbers& numbers, Time arrived);
  /// Writes what has arrived, of the steps and of the sieve. Throws DataError.
  void write();
  /// The line of progress, once there is something to tell.
  void show(int64_t steps_done);
  /// Other output is about to come.
  void pause() { progress_.pause(); }

 private:
  std::string note() const;

  bool forgets_;
  MetricsWriter& metrics_;
  Sieve* sieve_;
  const Sampler& sampler_;
  Progress progress_;
  struct Begun {
    Time at;
    int64_t epoch;
  };
  /// steps whose numbers have not arrived
  std::map<int64_t, Begun> begun_;
  /// of the latest numbers
  Time arrived_{};
  std::deque<StepMetrics> unwritten_;
  StepMetrics latest_;
  double smooth_loss_ = -1, smooth_forget_loss_ = -1;
  /// visits, those that were passed over among them
  int64_t visits_ = 0, dropped_ = 0;
};

}  // namespace memsieve::trainer
