#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>
#include <diffusion/models/common/group_norm.h>

namespace memsieve::diffusion {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

GroupNormShape shape_of(const at::Tensor& x, int64_t groups) {
  return {x.size(0), x.size(2) * x.size(3), x.size(1), groups};
}

struct FusedGroupNorm : torch::autograd::Function<FusedGroupNorm> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta,
                            int64_t groups, double eps, bool activate) {
    at::Tensor y = at::empty_like(x), mean = at::empty({x.size(0), groups}, x.options());
    at::Tensor rstd = at::empty_like(mean);
    group_norm_forward(shape_of(x, groups), eps, activate, x.const_data_ptr<float>(), gamma.const_data_ptr<float>(),
                       beta.const_data_ptr<float>(), y.data_ptr<float>(), mean.data_ptr<float>(),
                       rstd.data_ptr<float>());
    ctx->save_for_backward({x, gamma, beta, mean, rstd});
    ctx->saved_data["activate"] = activate;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &gamma = saved[1], &beta = saved[2], &mean = saved[3], &rstd = saved[4];
    const at::Tensor dy = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    at::Tensor dx = at::empty_like(x), dgamma = at::empty_like(gamma), dbeta = at::empty_like(beta);
    group_norm_backward(shape_of(x, mean.size(1)), ctx->saved_data["activate"].toBool(), dy.const_data_ptr<float>(),
                        x.const_data_ptr<float>(), gamma.const_data_ptr<float>(), beta.const_data_ptr<float>(),
                        mean.const_data_ptr<float>(), rstd.const_data_ptr<float>(), dx.data_ptr<float>(),
                        dgamma.data_ptr<float>(), dbeta.data_ptr<float>());
    return {dx, dgamma, dbeta, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

bool fits_kernel(const torch::nn::GroupNormImpl& norm, const at::Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && norm.weight.scalar_type() == at::kFloat &&
         norm.weight.is_contiguous() && x.dim() == 4 && x.numel() > 0 &&
         x.is_contiguous(at::MemoryFormat::ChannelsLast) && !at::autocast::is_autocast_enabled(at::kCPU);
}

}  // namespace

at::Tensor group_norm(torch::nn::GroupNorm& norm, const at::Tensor& x, bool activate) {
  if (fits_kernel(*norm, x))
    return FusedGroupNorm::apply(x, norm->weight, norm->bias, norm->options.num_groups(), norm->options.eps(),
                                 activate);
  return activate ? at::silu(norm(x)) : norm(x);
}

}  // namespace memsieve::diffusion
