#pragma once
// What a training loop hands to the sieve, and what it gets back.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

namespace memsieve {

/// The caller's own model on chosen rows of this micro-batch with the empty caption, without gradient. `rows`: [k]
/// int64 on the training device. Returns [k, C, H, W] in the model's dtype.
using NullPrediction = std::function<at::Tensor(const at::Tensor& rows)>;

/// One micro-batch of B rows. Tensors may carry gradients; the sieve only ever reads them detached.
struct Batch {
  /// [B] int64 on the CPU, in [0, dataset_size): which sample of the data set each row is
  at::Tensor sample_id;
  /// [B] integer or float, any device, in [0, num_timesteps)
  at::Tensor timestep;
  /// [B, C, ...] of any floating type, on the training device: what the model predicts (epsilon, v, sample or velocity)
  /// with the caption.
  at::Tensor prediction;
  /// like prediction
  at::Tensor target;
  /// asked for only if a configured filter needs the magnitude
  NullPrediction null_prediction;
  /// [B] bool, any device, or undefined = all; rows under caption dropout are not measured
  at::Tensor has_caption;
};

/// Where the loop is. `step` counts optimiser steps attempted (skipped ones too).
struct Clock {
  int64_t step = 0;
  int64_t epoch = 0;
};

/// What to do with the rows of one micro-batch.
class Plan {
 public:
  /// [B] float32 on the training device: 1 = train on it, 0 = dropped, between = down-weighted.
  const at::Tensor& weight() const { return weight_; }
  /// The scalar to call backward on: mean over the configured micro-batch of weight * per_sample_loss, divided by the
  /// number of micro-batches. Together with StepEnd::grad_scale: sum(w*l) / sum(w) over all ranks and micro-batches.
  /// `per_sample_loss`: [B], with gradient; weigh it by SNR or a mask of your own before, if you like. Throws
  /// DataError, on this rank alone, for another shape.
  at::Tensor loss(const at::Tensor& per_sample_loss) const;

 private:
  friend class Sieve;
  at::Tensor weight_;
  int64_t rows_per_micro_batch_ = 0, micro_batches_ = 1;
  /// [B] bool shared with the step's record
  std::shared_ptr<at::Tensor> nonfinite_;
};

/// What the optimiser needs, as 0-dim float32 tensors on the training device: what torch's fused optimisers call
/// `grad_scale` (gradients are divided by it) and `found_inf` (1 = leave parameters and optimiser state as they are).
struct StepEnd {
  /// exactly 1 when nothing was dropped
  at::Tensor grad_scale;
  /// 1 when every row of every rank was dropped, or an error or a non-finite value turned up.
  at::Tensor skip;
  /// 1 when a non-finite value turned up: for loops that count such steps (`on_nonfinite: skip`).
  at::Tensor nonfinite = {};
};

/// A row to observe: held-out picture `picture`, under the pseudo-row `id` to put into Batch::sample_id.
struct HeldOutVisit {
  int64_t id = 0;
  /// index into the held-out set
  int64_t picture = 0;
  /// suggested t / num_timesteps, stratified over the step's visits
  double timestep_fraction = 0;
  /// place among the step's held-out rows over all ranks: key your noise by it
  int64_t place = 0;
};

}  // namespace memsieve
