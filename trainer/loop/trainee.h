#pragma once
// The model that is trained, and all that changes with its weights.

#include <diffusion/models/model.h>
#include <memsieve/batch.h>
#include <runtime/reducer.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/optim/ema.h>
#include <trainer/optim/loss_scale.h>
#include <trainer/optim/optimizer.h>
#include <trainer/trainer_rooms.h>

#include <optional>
#include <string>

namespace memsieve::trainer {

struct TraineeOptions {
  OptimizerConfig optimizer = {};
  int64_t max_train_steps = 0;
  /// nothing = no average
  std::optional<double> ema_decay = {};
  /// with fp16
  std::optional<LossScaleOptions> loss_scale = {};
  double bucket_mb = 25;
};

class Trainee {
 public:
  /// COLLECTIVE. `model` is the same on all ranks, on the group's device.
  Trainee(Model model, const TraineeOptions& options, Group& group);

  /// COLLECTIVE. The reducer orders its buckets anew after the first backward, and sums depend on that order: a
  /// backward of nothing before training, so that the first step of a resumed run sums as any other. `nothing`: one row
  /// of zeros [1, C, H, W] with its condition.
  void settle_buckets(const at::Tensor& nothing, const Conditioning& condition);

  /// Backward of a micro-batch's loss (0-dim), scaled under fp16. COLLECTIVE if `sync`: the last one of a step.
  void backward(const at::Tensor& loss, bool sync);
  /// The update that `end` asks for, of optimiser, loss scale and average. Nothing waits for the device.
  Update update(StepEnd end);
  /// 0-dim float64: what losses are multiplied by; 0 without fp16.
  at::Tensor loss_scale() const;

  /// COLLECTIVE in nothing. Takes optimiser, loss scale and average from a checkpoint's folder; the model comes from
  /// there already. Throws DataError.
  void restore(const std::string& checkpoint);
  /// What of a checkpoint is the model's and the optimiser's. The result refers to this.
  CheckpointParts checkpoint_parts();

  Model& model() { return model_; }
  /// null = none
  Ema* ema() { return ema_ ? &*ema_ : nullptr; }

 private:
  void restore_ema(const std::string& checkpoint);

  Model model_;
  AdamW optimizer_;
  std::optional<LossScale> loss_scale_;
  std::optional<Ema> ema_;
  GradientReducer reducer_;
};

}  // namespace memsieve::trainer
