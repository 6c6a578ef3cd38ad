#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/upsample_nearest2d.h>
#include <ATen/ops/zeros.h>
#include <diffusion/models/common/group_norm.h>
#include <diffusion/models/common/layers.h>

#include <cmath>

namespace memsieve::diffusion {

namespace nn = torch::nn;

at::Tensor timestep_features(const at::Tensor& timestep, int64_t dim, bool flip_sin_to_cos, double freq_shift) {
  const int64_t half = dim / 2;
  const auto options = timestep.options().dtype(at::kFloat);
  const at::Tensor exponent = at::arange(half, options) * -std::log(10000.0) / (static_cast<double>(half) - freq_shift);
  const at::Tensor angle = timestep.to(at::kFloat).unsqueeze(1) * exponent.exp().unsqueeze(0);
  const at::Tensor sine = angle.sin(), cosine = angle.cos();
  std::vector<at::Tensor> parts = {flip_sin_to_cos ? cosine : sine, flip_sin_to_cos ? sine : cosine};
  if (dim % 2 == 1) parts.push_back(at::zeros({timestep.size(0), 1}, options));
  return at::cat(parts, 1);
}

TimestepEmbeddingImpl::TimestepEmbeddingImpl(int64_t in, int64_t out)
    : linear_1_(register_module("linear_1", Linear(in, out))),
      linear_2_(register_module("linear_2", Linear(out, out))) {}

at::Tensor TimestepEmbeddingImpl::forward(const at::Tensor& features) {
  return linear_2_(at::silu(linear_1_(features)));
}

namespace {

nn::GroupNorm make_norm(int64_t groups, int64_t channels, double eps) {
  return nn::GroupNorm(nn::GroupNormOptions(groups, channels).eps(eps));
}

}  // namespace

ResnetBlock2DImpl::ResnetBlock2DImpl(const Options& o)
    : norm1_(register_module("norm1", make_norm(o.groups, o.in, o.eps))),
      norm2_(register_module("norm2", make_norm(o.groups, o.out, o.eps))),
      conv1_(register_module("conv1", Conv2d(o.in, o.out, 3))),
      conv2_(register_module("conv2", Conv2d(o.out, o.out, 3))) {
  if (o.time_dim > 0) time_emb_proj_ = register_module("time_emb_proj", Linear(o.time_dim, o.out));
  if (o.in != o.out) conv_shortcut_ = register_module("conv_shortcut", Conv2d(o.in, o.out, 1));
}

at::Tensor ResnetBlock2DImpl::forward(const at::Tensor& x, const at::Tensor& activated_time) {
  return run([this](const auto& in) { return compute(in[0], in[1]); }, {x, activated_time});
}

at::Tensor ResnetBlock2DImpl::compute(const at::Tensor& x, const at::Tensor& activated_time) {
  at::Tensor h = conv1_(group_norm(norm1_, x, true));
  if (time_emb_proj_) h = h + time_emb_proj_(activated_time).unsqueeze(2).unsqueeze(3);
  h = conv2_(group_norm(norm2_, h, true));
  return (conv_shortcut_ ? conv_shortcut_(x) : x) + h;
}

ResampleImpl::ResampleImpl(int64_t channels, int64_t stride)
    : conv_(register_module("conv", Conv2d(channels, channels, 3, stride))) {}

at::Tensor ResampleImpl::forward(const at::Tensor& x) {
  return conv_(x);
}

at::Tensor ResampleImpl::forward(const at::Tensor& x, at::IntArrayRef height_and_width) {
  return conv_(at::upsample_nearest2d(x, height_and_width));
}

}  // namespace memsieve::diffusion
