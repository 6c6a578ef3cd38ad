#pragma once
// Linear and Conv2d with room for a low-rank adapter (LoRA; trainer/nn/lora.h fills it). Without one they are
// torch's.

#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <memory>

namespace memsieve::trainer {

/// What LoRA adds to a layer: scale * B(A(x)). `a` is [r, ...] and `b` [..., r], in the form of the layer's
/// own weight: Linear's [out, in], or a convolution's [out, in, k, k] with `b` of kernel 1.
struct LowRank {
  at::Tensor a, b;
  double scale = 1;
  bool on = true;  ///< false = the layer does what it does without an adapter
};

/// A layer that can hold an adapter. The adapter is no parameter of the module: a saved UNet holds the base
/// alone.
class Adaptable {
 public:
  virtual ~Adaptable() = default;
  void adapt(std::shared_ptr<const LowRank> adapter) { adapter_ = std::move(adapter); }
  /// The weight that an adapter is to be added to.
  virtual const at::Tensor& adapted_weight() const = 0;

 protected:
  /// The adapter if it is to be applied, else null.
  const LowRank* adapter() const { return adapter_ && adapter_->on ? adapter_.get() : nullptr; }

 private:
  std::shared_ptr<const LowRank> adapter_;
};

/// y plus the adapter's answer to x: y itself if there is no adapter. x [..., in], y [..., out]. The
/// adapter's weights may carry a 1x1 kernel.
at::Tensor plus_linear_adapter(const LowRank* adapter, const at::Tensor& y, const at::Tensor& x);

class LinearImpl : public torch::nn::LinearImpl, public Adaptable {
 public:
  using torch::nn::LinearImpl::LinearImpl;
  at::Tensor forward(const at::Tensor& x);
  /// `y`: weight * x + bias, by whatever means it was computed.
  at::Tensor plus_adapter(const at::Tensor& y, const at::Tensor& x) const {
    return plus_linear_adapter(adapter(), y, x);
  }
  const at::Tensor& adapted_weight() const override { return weight; }
};
TORCH_MODULE(Linear);

class Conv2dImpl : public torch::nn::Conv2dImpl, public Adaptable {
 public:
  using torch::nn::Conv2dImpl::Conv2dImpl;
  at::Tensor forward(const at::Tensor& x);
  const at::Tensor& adapted_weight() const override { return weight; }
};
TORCH_MODULE(Conv2d);

}  // namespace memsieve::trainer
