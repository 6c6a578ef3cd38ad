#pragma once
// AdamW as torch's fused operator, with gradient clipping before it. Nothing here waits for a GPU: scale, skip flag,
// learning rate and the count of updates are tensors on the device.

#include <ATen/core/Tensor.h>
#include <memsieve/batch.h>
#include <trainer/optim/lr_schedule.h>
#include <trainer/trainer_rooms.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::trainer {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// What one update did, as 0-dim tensors on the device.
struct Update {
  /// float32: global 2-norm of the gradient (after division by grad_scale), before clipping
  at::Tensor grad_norm;
  /// the learning rate that was used
  at::Tensor lr;
  /// float32: 1 = parameters and state stayed as they were
  at::Tensor skipped;
  /// float32: 1 = skipped because the gradient's norm was NaN or Inf
  at::Tensor nonfinite;
};

class AdamW {
 public:
  /// `parameters` are updated in place; all on one device, float32.
  AdamW(NamedTensors parameters, const OptimizerConfig& config, int64_t max_train_steps);

  /// Divides the gradients by end.grad_scale, clips their global norm to max_grad_norm, and updates, unless end.skip
  /// is 1 or the norm is not finite: then parameters, moments and the count of updates stay as they are, bit for bit.
  /// With grad_scale 1: the arithmetic of torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW(fused=True). Clears
  /// the gradients.
  Update step(const StepEnd& end);

  /// 0-dim float32: updates made, skipped ones not counted.
  const at::Tensor& updates() const { return updates_; }

  /// `exp_avg.NAME`, `exp_avg_sq.NAME` and `updates`, on the CPU.
  std::map<std::string, at::Tensor> state() const;
  /// Throws DataError (`where` + what is wrong) for a tensor that is missing, superfluous or of another shape.
  void restore(const std::map<std::string, at::Tensor>& state, const std::string& where);

 private:
  OptimizerConfig config_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> params_, exp_avg_, exp_avg_sq_, step_list_;
  at::Tensor updates_;
  LrSchedule schedule_;
};

/// torch.nn.utils.get_total_norm: the 2-norm of the gradients' 2-norms.
at::Tensor total_norm(const std::vector<at::Tensor>& gradients);

}  // namespace memsieve::trainer
