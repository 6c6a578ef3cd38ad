#pragma once
// The learning rate as a function of the updates made so far; a skipped update does not count.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <trainer/optim/optimizer_config.h>

#include <cstdint>

namespace memsieve::trainer {

/// What the learning rate is multiplied by before update `updates` (counted from 0). As diffusers' get_scheduler:
/// during the warm-up updates / lr_warmup_steps; then 1, or down to 0 at `max_train_steps`, linearly, along half a
/// cosine or several of them, or down to 1e-7 as a power of what is left. The decay begins at the warm-up's end, or
/// later if lr_decay_fraction says so.
double lr_factor(const OptimizerConfig& config, int64_t max_train_steps, int64_t updates);

/// The same as a table on the device, so that looking it up needs no host.
class LrSchedule {
 public:
  LrSchedule(const OptimizerConfig& config, int64_t max_train_steps, c10::Device device);
  /// `updates`: 0-dim float32 on the device. Returns the learning rate, 0-dim (float64 on a CPU, float32 on a GPU: what
  /// the fused optimiser reads there).
  at::Tensor at(const at::Tensor& updates) const;

 private:
  at::Tensor table_;  // [min(max_train_steps, what differs) + 1]
};

}  // namespace memsieve::trainer
