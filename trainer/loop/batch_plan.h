#pragma once
// Which samples the steps train on when the sieve has some passed over.

#include <ATen/core/Tensor.h>
#include <diffusion/data/sampler.h>
#include <trainer/trainer_rooms.h>

#include <deque>
#include <mutex>
#include <vector>

namespace memsieve::trainer {

/// The batches of a few steps to come, planned in the order of steps: a function of the seed, of where the stream
/// stands, and of the flags of each step, so that a resumed run and any number of ranks plan the same. One thread
/// plans, another may read.
class BatchPlan {
 public:
  /// Step `step` begins at `position` of the stream.
  BatchPlan(const Sampler& sampler, int64_t step, int64_t position);

  /// Plans step end(). `flagged` [dataset_size] bool: the samples to pass over in it.
  void add(const at::Tensor& flagged);
  /// Forgets the steps before `step`.
  void forget_before(int64_t step);

  /// The step after the last that was planned.
  int64_t end() const;
  /// Sample ids of one micro-batch on one rank, of a step that was planned and not forgotten.
  std::vector<int64_t> rows(int64_t step, int64_t micro, int64_t rank) const;
  /// In the order of the stream, of such a step.
  std::vector<int64_t> passed_over(int64_t step) const;
  /// Where in the stream such a step begins, or step end().
  int64_t position(int64_t step) const;

 private:
  struct Step {
    int64_t position;
    Filled batch;
  };
  const Step& at(int64_t step) const;

  Sampler sampler_;
  int64_t first_, next_position_;
  std::deque<Step> steps_;
  mutable std::mutex mutex_;
};

}  // namespace memsieve::trainer
