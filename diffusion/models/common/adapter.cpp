#include <ATen/core/grad_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <diffusion/models/common/adapter.h>

#include <cmath>

namespace memsieve::diffusion {

namespace {

thread_local int unfilled = 0;

// torch's Linear and Conv2d both start uniform in +-1/sqrt(inputs), weights and biases alike.
at::Tensor new_parameter(at::IntArrayRef shape, int64_t inputs) {
  at::Tensor out = at::empty(shape);
  if (unfilled > 0) return out;
  const at::NoGradGuard no_grad;
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));
  return out.uniform_(-bound, bound);
}

}  // namespace

Unfilled::Unfilled() {
  ++unfilled;
}
Unfilled::~Unfilled() {
  --unfilled;
}
bool Unfilled::now() {
  return unfilled > 0;
}

at::Tensor plus_linear_adapter(const LowRank* adapter, const at::Tensor& y, const at::Tensor& x) {
  if (adapter == nullptr) return y;
  const at::Tensor a = adapter->a.flatten(1), b = adapter->b.flatten(1);
  return at::add(y, at::linear(at::linear(x, a), b), adapter->scale);
}

LinearImpl::LinearImpl(int64_t in, int64_t out, Form form) {
  std::vector<int64_t> shape = {out, in};
  if (form == Form::convolution) shape.insert(shape.end(), {1, 1});
  weight = register_parameter("weight", new_parameter(shape, in));
  if (form != Form::no_bias) bias = register_parameter("bias", new_parameter({out}, in));
}

at::Tensor LinearImpl::forward(const at::Tensor& x) {
  return plus_adapter(at::linear(x, weight.flatten(1), bias), x);
}

Conv2dImpl::Conv2dImpl(int64_t in, int64_t out, int64_t kernel, int64_t stride)
    : weight(register_parameter("weight", new_parameter({out, in, kernel, kernel}, in * kernel * kernel))),
      bias(register_parameter("bias", new_parameter({out}, in * kernel * kernel))),
      stride_(stride) {}

at::Tensor Conv2dImpl::forward(const at::Tensor& x) {
  const int64_t padding = weight.size(2) / 2;
  at::Tensor y = at::conv2d(x, weight, bias, stride_, padding);
  const LowRank* low = adapter();
  if (low == nullptr) return y;
  // A does what the layer does with fewer channels, B mixes them.
  return at::add(y, at::conv2d(at::conv2d(x, low->a, {}, stride_, padding), low->b), low->scale);
}

}  // namespace memsieve::diffusion
