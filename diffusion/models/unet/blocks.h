#pragma once
// The levels of the UNet: down, middle and up blocks, each with or without attention.

#include <diffusion/models/common/attention.h>
#include <diffusion/models/unet/unet_config.h>

namespace memsieve::diffusion {

/// DownBlock2D and CrossAttnDownBlock2D.
class DownBlockImpl : public torch::nn::Module {
 public:
  DownBlockImpl(const UNetConfig& config, int64_t level);
  /// Appends every state that the way up will need, and returns the last.
  at::Tensor forward(at::Tensor x, const at::Tensor& activated_time, const at::Tensor& text,
                     std::vector<at::Tensor>& skips);

 private:
  std::vector<std::shared_ptr<ResnetBlock2DImpl>> resnets_;
  std::vector<std::shared_ptr<Transformer2DModelImpl>> attentions_;
  std::shared_ptr<ResampleImpl> downsampler_;
};

/// UNetMidBlock2DCrossAttn.
class MidBlockImpl : public torch::nn::Module {
 public:
  explicit MidBlockImpl(const UNetConfig& config);
  at::Tensor forward(const at::Tensor& x, const at::Tensor& activated_time, const at::Tensor& text);

 private:
  std::vector<std::shared_ptr<ResnetBlock2DImpl>> resnets_;
  std::shared_ptr<Transformer2DModelImpl> attention_;
};

/// UpBlock2D and CrossAttnUpBlock2D. `place` counts up_block_types, so 0 is the coarsest level.
class UpBlockImpl : public torch::nn::Module {
 public:
  UpBlockImpl(const UNetConfig& config, int64_t place);
  /// Takes one skip off the back for each ResNet; the next one left tells the size to upsample to.
  at::Tensor forward(at::Tensor x, const at::Tensor& activated_time, const at::Tensor& text,
                     std::vector<at::Tensor>& skips);

 private:
  std::vector<std::shared_ptr<ResnetBlock2DImpl>> resnets_;
  std::vector<std::shared_ptr<Transformer2DModelImpl>> attentions_;
  std::shared_ptr<ResampleImpl> upsampler_;
};

}  // namespace memsieve::diffusion
