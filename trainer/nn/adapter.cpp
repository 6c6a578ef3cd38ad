#include <ATen/ops/add.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/linear.h>
#include <trainer/nn/adapter.h>

namespace memsieve::trainer {

at::Tensor plus_linear_adapter(const LowRank* adapter, const at::Tensor& y, const at::Tensor& x) {
  if (adapter == nullptr) return y;
  const at::Tensor a = adapter->a.flatten(1), b = adapter->b.flatten(1);
  return at::add(y, at::linear(at::linear(x, a), b), adapter->scale);
}

at::Tensor LinearImpl::forward(const at::Tensor& x) {
  return plus_adapter(torch::nn::LinearImpl::forward(x), x);
}

at::Tensor Conv2dImpl::forward(const at::Tensor& x) {
  const at::Tensor y = torch::nn::Conv2dImpl::forward(x);
  const LowRank* low = adapter();
  if (low == nullptr) return y;
  // A does what the layer does with fewer channels, B mixes them.
  const auto padding = options.padding();
  const at::Tensor inner = at::conv2d(x, low->a, {}, options.stride(),
                                      *std::get_if<torch::ExpandingArray<2>>(&padding), options.dilation());
  return at::add(y, at::conv2d(inner, low->b), low->scale);
}

}  // namespace memsieve::trainer
