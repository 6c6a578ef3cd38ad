#pragma once
// Linear and Conv2d with room for a low-rank adapter (LoRA; diffusion/models/lora/lora.h fills it). Without one they do
// what torch's do, and start from the same random numbers.

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <memory>

namespace memsieve::diffusion {

/// What LoRA adds to a layer: scale * B(A(x)). `a` is [r, ...] and `b` [..., r], in the form of the layer's own weight:
/// Linear's [out, in], or a convolution's [out, in, k, k] with `b` of kernel 1.
struct LowRank {
  at::Tensor a, b;
  double scale = 1;
  /// false = the layer does what it does without an adapter
  bool on = true;
};

/// A layer that can hold an adapter. The adapter is no parameter of the module: a saved UNet holds the base alone.
class Adaptable {
 public:
  virtual ~Adaptable() = default;
  void adapt(std::shared_ptr<const LowRank> adapter) { adapter_ = std::move(adapter); }
  /// The weight that an adapter is to be added to.
  virtual const at::Tensor& adapted_weight() const = 0;

  /// The adapter if it is to be applied, else null.
  const LowRank* adapter() const { return adapter_ && adapter_->on ? adapter_.get() : nullptr; }

 private:
  std::shared_ptr<const LowRank> adapter_;
};

/// y plus the adapter's answer to x: y itself if there is no adapter. x [..., in], y [..., out]. The adapter's weights
/// may carry a 1x1 kernel.
at::Tensor plus_linear_adapter(const LowRank* adapter, const at::Tensor& y, const at::Tensor& x);

/// While one lives, Linear and Conv2d made on this thread do not fill their weights: for a model that is about to get
/// its weights from a file, or whose shapes alone are wanted (memory that is never written is never taken).
class Unfilled {
 public:
  Unfilled();
  ~Unfilled();
  Unfilled(const Unfilled&) = delete;
  Unfilled& operator=(const Unfilled&) = delete;
  /// Whether one lives on this thread.
  static bool now();
};

class LinearImpl : public torch::nn::Module, public Adaptable {
 public:
  /// convolution: the weight is stored as one with kernel 1
  enum class Form { plain, no_bias, convolution };
  LinearImpl(int64_t in, int64_t out, Form form = Form::plain);
  /// [..., in] -> [..., out]
  at::Tensor forward(const at::Tensor& x);
  /// `y`: weight * x + bias, by whatever means it was computed.
  at::Tensor plus_adapter(const at::Tensor& y, const at::Tensor& x) const {
    return plus_linear_adapter(adapter(), y, x);
  }
  const at::Tensor& adapted_weight() const override { return weight; }

  /// [out, in], or [out, in, 1, 1]
  at::Tensor weight;
  /// [out], or undefined
  at::Tensor bias;
};
TORCH_MODULE(Linear);

/// Square kernel of odd size, padded so that stride 1 keeps height and width.
class Conv2dImpl : public torch::nn::Module, public Adaptable {
 public:
  Conv2dImpl(int64_t in, int64_t out, int64_t kernel, int64_t stride = 1);
  /// [B, in, H, W] -> [B, out, H', W']
  at::Tensor forward(const at::Tensor& x);
  const at::Tensor& adapted_weight() const override { return weight; }

  /// [out, in, kernel, kernel]
  at::Tensor weight;
  /// [out]
  at::Tensor bias;

 private:
  int64_t stride_;
};
TORCH_MODULE(Conv2d);

}  // namespace memsieve::diffusion
