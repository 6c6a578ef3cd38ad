#pragma once
// What a training loop hands to the sieve, and what it gets back.

#include <ATen/core/Tensor.h>
#include <memsieve/export.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace memsieve {

/// What would be predicted for chosen rows of this micro-batch if one thing were different, without gradient. `rows`:
/// [k] int64 on the training device. Returns [k, C, H, W] in the model's dtype. Called for a batch with a mistake, too,
/// with zeros for rows, even if it has none, since the other ranks may wait in the model's collectives; what it then
/// returns or throws is ignored.
using Counterfactual = std::function<at::Tensor(const at::Tensor& rows)>;

/// The caller's own model with the empty caption.
using NullPrediction = Counterfactual;

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
  /// short for counterfactuals["null"]; asked for only if a configured filter reads a signal that
  /// needs it, as the magnitude does
  NullPrediction null_prediction;
  /// [B] bool, any device, or undefined = all; rows under caption dropout are not measured
  at::Tensor has_caption;
  /// By the name that signals know them by (SignalEntry::counterfactual): `null`, `start`, ... Each is called at most
  /// once for a batch, and only if a configured filter reads a signal that needs it.
  std::map<std::string, Counterfactual> counterfactuals = {};
  /// [B] bool, any device, or undefined = none. Rows that the sieve must leave alone (prior preservation, rows trained
  /// towards another model's output): weight 1, no score, no trace in any statistic. Their sample_id must be in range,
  /// but says nothing. A NaN or Inf in their prediction or target still ends or skips the step.
  at::Tensor exempt = {};
  /// [B] int64 in [0, Setup::strata), any device, or undefined = all 0 (checked on the CPU only). z-scores compare a
  /// row with rows of its own stratum: resolutions, data sources, noise schedules.
  at::Tensor stratum = {};
  /// [B, F] of any floating type, any device, or undefined. Any features that are alike for copies of one picture (a
  /// caption's embedding, a small version of the picture): with `probe.likeness`, rows with copies are probed
  /// first, and samples that are alike are judged together. No evidence by itself.
  at::Tensor likeness = {};
};

/// Where the loop is. `step` counts optimiser steps attempted (skipped ones too).
struct Clock {
  int64_t step = 0;
  int64_t epoch = 0;
};

/// What to do with the rows of one micro-batch.
class MEMSIEVE_API Plan {
 public:
  /// [B] float32 on the training device: 1 = train on it, 0 = dropped, between = down-weighted.
  const at::Tensor& weight() const { return weight_; }
  /// The scalar to call backward on: mean over the configured micro-batch of weight * per_sample_loss, divided by the
  /// number of micro-batches. Together with StepEnd::grad_scale: sum(w*l) / sum(w) over all ranks and micro-batches.
  /// `per_sample_loss`: [B], with gradient; weigh it by SNR or a mask of your own before, if you like. For another
  /// shape it returns a loss of no meaning that backward can be called on: end_step throws the error on every rank.
  at::Tensor loss(const at::Tensor& per_sample_loss) const;
  /// The same, not divided by the number of micro-batches: for loops whose backward does that.
  at::Tensor undivided_loss(const at::Tensor& per_sample_loss) const;

 private:
  friend class Sieve;
  at::Tensor weight_;
  int64_t rows_per_micro_batch_ = 0, micro_batches_ = 1;
  /// What loss() saw, shared with the step's record.
  struct Seen {
    /// [B] bool
    at::Tensor nonfinite;
    std::exception_ptr error;
  };
  std::shared_ptr<Seen> seen_;
};

/// What the optimiser needs, as 0-dim float32 tensors on the training device: what torch's fused optimisers call
/// `grad_scale` (gradients are divided by it) and `found_inf` (1 = leave parameters and optimiser state as they are).
struct StepEnd {
  /// exactly 1 when nothing was dropped
  at::Tensor grad_scale;
  /// 1 when every row of every rank was dropped, when a training row or a gradient was not finite, or after an error.
  at::Tensor skip;
  /// 1 when a training row or a gradient was not finite: for loops that count such steps (`on_nonfinite: skip`).
  at::Tensor nonfinite = {};
};

/// A training sample to look at again: judged memorised, so that the loop passes over it. Where fewer are than rows to
/// look at, or than a rank's share, some other sample, of which nothing is kept, so that shapes stay the same.
struct Look {
  int64_t id = 0;
  /// suggested t / num_timesteps, stratified over the step's looks
  double timestep_fraction = 0;
  /// place among the step's looks over all ranks: key your noise by it
  int64_t place = 0;
};

/// A row to observe: held-out picture `picture`, under the pseudo-row `id` to put into Batch::sample_id. Where
/// `held_out.rows` is no multiple of the ranks, the last ranks' rows fill up, and nothing is kept of them.
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
