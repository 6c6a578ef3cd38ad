#pragma once
// The small pieces of the UNet. Names of modules and parameters are diffusers', so that its files load as they are.

#include <torch/nn/module.h>
#include <torch/nn/modules/normalization.h>
#include <diffusion/models/common/adapter.h>
#include <diffusion/models/common/gradient_checkpointing.h>

#include <memory>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Holds children under numbers ("resnets.0"), as torch's ModuleList does, but may skip some ("net.0", "net.2").
class NumberedImpl : public torch::nn::Module {
 public:
  template <class M>
  std::shared_ptr<M> add(std::size_t number, std::shared_ptr<M> child) {
    return register_module(std::to_string(number), std::move(child));
  }
};

/// Sine and cosine of the timestep at geometrically spaced frequencies, [B] -> [B, dim] float32. Ho, Jain, Abbeel:
/// "Denoising Diffusion Probabilistic Models", 2020, after Vaswani et al., 2017, section 3.5.
at::Tensor timestep_features(const at::Tensor& timestep, int64_t dim, bool flip_sin_to_cos, double freq_shift);

/// Linear, SiLU, Linear: [B, in] -> [B, out].
class TimestepEmbeddingImpl : public torch::nn::Module {
 public:
  TimestepEmbeddingImpl(int64_t in, int64_t out);
  at::Tensor forward(const at::Tensor& features);

 private:
  Linear linear_1_, linear_2_;
};

/// norm, SiLU, conv, + time embedding, norm, SiLU, conv, + (projected) input.
class ResnetBlock2DImpl : public CheckpointableImpl {
 public:
  struct Options {
    /// time_dim 0: without time embedding
    int64_t in, out, time_dim, groups;
    double eps;
  };
  explicit ResnetBlock2DImpl(const Options& options);
  /// x [B, in, H, W]; activated_time [B, time_dim]: SiLU of the time embedding, computed once for all blocks; undefined
  /// if time_dim is 0.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& activated_time);

 private:
  at::Tensor compute(const at::Tensor& x, const at::Tensor& activated_time);

  torch::nn::GroupNorm norm1_, norm2_;
  Conv2d conv1_, conv2_, conv_shortcut_{nullptr};
  Linear time_emb_proj_{nullptr};
};

/// 3x3 convolution with stride 2, or after nearest-neighbour interpolation to a given size.
class ResampleImpl : public torch::nn::Module {
 public:
  ResampleImpl(int64_t channels, int64_t stride);
  at::Tensor forward(const at::Tensor& x);
  at::Tensor forward(const at::Tensor& x, at::IntArrayRef height_and_width);

 private:
  Conv2d conv_;
};

}  // namespace memsieve::diffusion
