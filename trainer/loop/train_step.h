#pragma once
// One optimiser step: the place where the sieve sits in the loop.

#include <diffusion/data/prefetch.h>
#include <trainer/loop/session.h>
#include <trainer/rooms.h>

#include <exception>
#include <functional>
#include <optional>

namespace memsieve::trainer {

/// What one step tells the host, at once on a CPU and some steps later from a GPU. Order of the values in the mailbox.
struct StepNumbers {
  /// of the per-row losses over all ranks, before weights
  double loss_sum = 0;
  /// ranks that have been asked to stop
  double stop = 0;
  /// ranks that could not read their rows or write their files
  double failed = 0;
  /// sum of (rank + 1) over them
  double guilty = 0;
  double grad_norm = 0, lr = 0, skipped = 0, nonfinite = 0;
  /// that this step's gradients had; 0 without fp16
  double loss_scale = 0;
};
StepNumbers step_numbers(const std::vector<double>& values);

/// The parts of a step, in the order in which they come.
enum class Part { data, forward, probe, backward, reduce, optimiser };

class TrainStep {
 public:
  explicit TrainStep(Session& session);

  /// COLLECTIVE: the gradient's buckets, the sieve's record and one small sum, whatever the data hold. Returns
  /// StepNumbers as a tensor on the device. Throws PeerError or NonFiniteError as Sieve::end_step does, on all ranks.
  at::Tensor run(int64_t step);

  /// Why this rank must end, or null: it could not read its rows, or `fail` was told. It takes part in the steps'
  /// collectives all the same until all ranks know.
  const std::exception_ptr& failure() const { return failure_; }
  void fail(const std::exception_ptr& error) {
    if (!failure_) failure_ = error;
  }

  /// This rank's rows of a micro-batch: the same whenever they are asked for.
  NoisyRows rows(int64_t step, int64_t micro);
  /// Calls `listener` on the host after each part of each step, to measure; a part may come more than once.
  void tell_parts(std::function<void(Part)> listener) { ended_ = std::move(listener); }

 private:
  void ended(Part part) const {
    if (ended_) ended_(part);
  }
  HostRows next_rows(int64_t step, int64_t micro);
  NoisyRows held_out_rows(const std::vector<HeldOutVisit>& visits, int64_t step);
  void make_held_out(int64_t step);
  at::Tensor micro_step(const Clock& clock, int64_t micro);
  at::Tensor null_prediction(const NoisyRows& rows, const at::Tensor& which);
  void observe_held_out(const Clock& clock);

  /// This step's held-out rows, and what the model predicts for them once it has been asked.
  struct HeldOut {
    NoisyRows rows;
    at::Tensor prediction;
  };

  Session& s_;
  std::optional<HeldOut> held_out_;
  std::exception_ptr failure_;
  std::function<void(Part)> ended_;
  /// of micro-batches, counted through all steps
  std::optional<Prefetcher<HostRows>> ahead_;
  int64_t ahead_next_ = -1;
};

}  // namespace memsieve::trainer
