#pragma once
// GroupNorm, with or without SiLU after it, as one pass over the activations where that pays.

#include <torch/nn/modules/normalization.h>

namespace memsieve::diffusion {

/// SiLU(GroupNorm(x)), or GroupNorm(x) without `activate`; [B, C, H, W] -> the same, differentiable, memory format
/// kept. Wu and He, "Group Normalization", 2018. float32 channels_last on the CPU runs in a kernel of ours, which
/// keeps nothing between the two for the backward pass and whose results do not depend on the number of threads; all
/// else in torch's.
at::Tensor group_norm(torch::nn::GroupNorm& norm, const at::Tensor& x, bool activate);

/// What the kernel works on: `pixels` x `channels` floats for each sample, channels innermost.
struct GroupNormShape {
  int64_t batch, pixels, channels, groups;
};

/// gamma, beta: [C]; y like x; mean and rstd (1 / standard deviation): [B, groups].
void group_norm_forward(const GroupNormShape& shape, double eps, bool activate, const float* x, const float* gamma,
                        const float* beta, float* y, float* mean, float* rstd);

/// Gradients from dy: dx like x; dgamma and dbeta, [C], summed over the batch.
void group_norm_backward(const GroupNormShape& shape, bool activate, const float* dy, const float* x,
                         const float* gamma, const float* beta, const float* mean, const float* rstd, float* dx,
                         float* dgamma, float* dbeta);

}  // namespace memsieve::diffusion
