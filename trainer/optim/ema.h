#pragma once
// Exponential moving average of the weights, on the device.

#include <ATen/core/Tensor.h>

#include <vector>

namespace memsieve::trainer {

class Ema {
 public:
  /// Starts as a copy of `parameters`.
  Ema(std::vector<at::Tensor> parameters, double decay);

  /// average += (1 - d) * (parameter - average) with d = min(decay, (1 + n) / (10 + n)), n = `updates` (0-dim float32:
  /// updates made, this one included). A step with `skipped` 1 leaves it bit for bit as it is.
  void update(const at::Tensor& updates, const at::Tensor& skipped);

  /// Exchanges the averages' values with the parameters', to draw or to save with them; call it again to go back.
  void swap();
  /// Overwrites the averages with `values`, in the order of the parameters.
  void copy_from(const std::vector<at::Tensor>& values);
  const std::vector<at::Tensor>& averages() const { return averages_; }

 private:
  double decay_;
  std::vector<at::Tensor> parameters_, averages_;
};

/// Swaps on construction and back at the end of the scope, also when an exception passes. `ema` may be null.
class WithEma {
 public:
  explicit WithEma(Ema* ema) : ema_(ema) {
    if (ema_ != nullptr) ema_->swap();
  }
  ~WithEma() {
    if (ema_ != nullptr) ema_->swap();
  }
  WithEma(const WithEma&) = delete;
  WithEma& operator=(const WithEma&) = delete;

 private:
  Ema* ema_;
};

}  // namespace memsieve::trainer
