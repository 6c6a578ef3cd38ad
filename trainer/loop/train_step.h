#pragma once
// One optimiser step: the place where the sieve sits in the loop.

#include <diffusion/data/prefetch.h>
#include <diffusion/data/sampler.h>
#include <memsieve/sieve.h>
#include <trainer/loop/batch_plan.h>
#include <trainer/loop/counterfactuals.h>
#include <trainer/loop/run_data.h>
#include <trainer/loop/step_numbers.h>
#include <trainer/loop/trainee.h>
#include <trainer/trainer_rooms.h>

#include <exception>
#include <functional>
#include <optional>

namespace memsieve::trainer {

/// The parts of a step, in the order in which they come.
enum class Part { data, forward, probe, backward, reduce, optimiser };

struct StepOptions {
  uint64_t seed = 0;
  NoiseOptions noise = {};
  /// gamma of Min-SNR loss weights; 0 = off
  double snr_gamma = 0;
  /// share of rows trained with the empty caption
  double proportion_empty_prompts = 0;
  /// rows of one micro-batch on each rank; micro-batches in one step
  int64_t train_batch_size = 0, accumulation = 1;
  int64_t max_train_steps = 0;
  /// micro-batches made ahead of the step, by a thread of their own; 0 = none
  int64_t prefetch = 0;
  /// norm of the gradient of the rows to forget that is subtracted, as a share of the other's; only where there are
  /// rows to forget
  double forget_share = 0;
  /// held-out rows are observed, and flagged samples looked at, in every step that this divides, by ranks that have
  /// some; 0 = never
  int64_t held_out_every = 0, revisit_every = 0;
  /// samples that the sieve has flagged are passed over
  bool pass_over = false;
  /// of this part of the run, and where it begins in the stream of samples
  int64_t first_step = 0, stream_position = 0;
};

/// This rank's rows of one micro-batch, on the host.
struct HostBatch {
  HostRows keep;
  /// as many, with the timesteps, noise and mirroring of those to keep, and never without caption; where there is
  /// something to forget
  std::optional<HostRows> forget = {};
};

/// What a step works on; all of it must outlive the step.
struct StepParts {
  RunData& data;
  const Sampler& sampler;
  Trainee& trainee;
  /// null = none
  Sieve* sieve;
  /// null = no signal compares with it
  StartingModel* start = nullptr;
  Group& group;
};

class TrainStep {
 public:
  TrainStep(const StepOptions& options, const StepParts& parts);

  /// COLLECTIVE: the gradient's buckets (twice where something is to be forgotten), the sieve's record and one small
  /// sum, whatever the data hold. The model is called equally often on every rank. Returns StepNumbers as a tensor on
  /// the device. Throws PeerError or NonFiniteError as Sieve::end_step does, on all ranks.
  at::Tensor run(int64_t step);

  /// Why this rank must end, or null: it could not read its rows, or `fail` was told. It takes part in the steps'
  /// collectives all the same until all ranks know.
  const std::exception_ptr& failure() const { return failure_; }
  void fail(const std::exception_ptr& error) {
    if (!failure_) failure_ = error;
  }

  /// This rank's rows of a micro-batch: the same whenever they are asked for.
  NoisyRows rows(int64_t step, int64_t micro);
  /// Where in the stream of samples step `step` begins: of the step to come, or of the one that runs.
  int64_t stream_position(int64_t step) const;
  /// The pass over the data set that this belongs to.
  int64_t epoch(int64_t step) const { return sampler_.epoch_at(stream_position(step)); }
  /// Calls `listener` on the host after each part of each step, to measure; a part may come more than once.
  void tell_parts(std::function<void(Part)> listener) { ended_ = std::move(listener); }

 private:
  void ended(Part part) const {
    if (ended_) ended_(part);
  }
  void plan(int64_t step);
  std::vector<int64_t> sample_ids(int64_t step, int64_t micro) const;
  HostBatch next_rows(int64_t step, int64_t micro);
  /// `ids` as rows of zeros with the empty caption.
  NoisyRows nothing(const std::vector<int64_t>& ids) const;
  NoisyRows held_out_rows(const std::vector<HeldOutVisit>& visits, int64_t step);
  NoisyRows look_rows(const std::vector<Look>& looks, int64_t step);
  void make_extra_rows(int64_t step);
  void observe_extra_rows(const Clock& clock);
  at::Tensor weighted(const at::Tensor& row_loss, const at::Tensor& timestep) const;
  at::Tensor mean_loss(const at::Tensor& row_loss) const;
  at::Tensor micro_step(const Clock& clock, int64_t micro);
  NoisyRows forget_rows(int64_t micro);
  at::Tensor forget_micro_step(int64_t micro);
  /// After the backward of the rows to keep: that of the rows to forget, whose losses are added to `loss_sum`, and the
  /// gradients that follow from both. Returns what those to forget were multiplied by.
  at::Tensor forget(const at::Tensor& loss_sum);
  StepEnd end_step(const Clock& clock);

  StepOptions options_;
  RunData& data_;
  const Sampler& sampler_;
  Trainee& trainee_;
  Sieve* sieve_;
  Group& group_;
  Counterfactuals counterfactuals_;
  /// this step's, of this rank
  std::optional<NoisyRows> held_out_, looks_;
  /// of the rows to forget, if there are any; and those of this step, by micro-batch, as far as they could be read
  std::optional<Sampler> forget_sampler_;
  std::vector<std::optional<HostRows>> forget_;
  std::exception_ptr failure_;
  std::function<void(Part)> ended_;
  /// where samples are passed over
  std::optional<BatchPlan> plan_;
  /// of micro-batches, counted through all steps
  std::optional<Prefetcher<HostBatch>> ahead_;
  int64_t ahead_next_ = -1;
};

}  // namespace memsieve::trainer
