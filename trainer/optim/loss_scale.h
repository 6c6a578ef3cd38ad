#pragma once
// The loss scale of fp16 training: gradients too small for half precision are made larger, and the scale falls whenever
// that was too much. As torch.amp.GradScaler, but nothing here waits for the device.

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <map>
#include <string>

namespace memsieve::trainer {

struct LossScaleOptions {
  double initial = 65536;
  /// updates without overflow after which the scale doubles
  int64_t growth_interval = 2000;
};

class LossScale {
 public:
  LossScale(const LossScaleOptions& options, c10::Device device);

  /// 0-dim float32 on the device. Multiply the loss by it, and let the optimiser divide the gradients by it.
  const at::Tensor& scale() const { return scale_; }

  /// After the update: halves the scale if `overflow` is 1, doubles it after growth_interval updates in a row without;
  /// a step with `skip` 1 (it asked for no update) counts as neither. Both 0-dim float32, the same on all ranks, as the
  /// gradients are. Returns 1 where the overflow is the fault of the data or the model, not of the scale, which was at
  /// most 1 (0-dim float32).
  at::Tensor adapt(const at::Tensor& skip, const at::Tensor& overflow);

  /// `loss_scale` float32 and `loss_scale_growth` int32, on the CPU.
  std::map<std::string, at::Tensor> state() const;
  /// Takes these two out of `state`. Throws DataError, beginning with `where`, if one is missing.
  void restore(std::map<std::string, at::Tensor>& state, const std::string& where);

 private:
  int64_t growth_interval_;
  at::Tensor scale_, growth_;
};

}  // namespace memsieve::trainer
