#include <ATen/ops/cat.h>
#include <diffusion/models/unet/blocks.h>

namespace memsieve::diffusion {

namespace {

std::shared_ptr<ResnetBlock2DImpl> make_resnet(const UNetConfig& c, int64_t in, int64_t out) {
  return std::make_shared<ResnetBlock2DImpl>(
      ResnetBlock2DImpl::Options{in, out, c.time_embed_dim(), c.norm_num_groups, c.norm_eps});
}

std::shared_ptr<Transformer2DModelImpl> make_transformer(const UNetConfig& c, int64_t level) {
  return std::make_shared<Transformer2DModelImpl>(Transformer2DModelImpl::Options{
      c.block_out_channels[level], c.attention_head_dim[level], c.cross_attention_dim[level],
      c.transformer_layers_per_block[level], c.norm_num_groups, c.use_linear_projection});
}

}  // namespace

DownBlockImpl::DownBlockImpl(const UNetConfig& c, int64_t level) {
  const int64_t out = c.block_out_channels[level];
  const bool attends = c.down_block_types[level] == "CrossAttnDownBlock2D";
  auto resnets = register_module("resnets", std::make_shared<NumberedImpl>());
  auto attentions = attends ? register_module("attentions", std::make_shared<NumberedImpl>()) : nullptr;
  for (int64_t i = 0; i < c.layers_per_block[level]; ++i) {
    const int64_t in = i == 0 && level > 0 ? c.block_out_channels[level - 1] : out;
    resnets_.push_back(resnets->add(i, make_resnet(c, in, out)));
    if (attends) attentions_.push_back(attentions->add(i, make_transformer(c, level)));
  }
  if (level + 1 < c.levels())
    downsampler_ = register_module("downsamplers", std::make_shared<NumberedImpl>())
                       ->add(0, std::make_shared<ResampleImpl>(out, 2));
}

at::Tensor DownBlockImpl::forward(at::Tensor x, const at::Tensor& activated_time, const at::Tensor& text,
                                  std::vector<at::Tensor>& skips) {
  for (std::size_t i = 0; i < resnets_.size(); ++i) {
    x = resnets_[i]->forward(x, activated_time);
    if (!attentions_.empty()) x = attentions_[i]->forward(x, text);
    skips.push_back(x);
  }
  if (downsampler_) skips.push_back(x = downsampler_->forward(x));
  return x;
}

MidBlockImpl::MidBlockImpl(const UNetConfig& c) {
  const int64_t channels = c.block_out_channels.back();
  auto resnets = register_module("resnets", std::make_shared<NumberedImpl>());
  for (int64_t i = 0; i < 2; ++i) resnets_.push_back(resnets->add(i, make_resnet(c, channels, channels)));
  attention_ =
      register_module("attentions", std::make_shared<NumberedImpl>())->add(0, make_transformer(c, c.levels() - 1));
}

at::Tensor MidBlockImpl::forward(const at::Tensor& x, const at::Tensor& activated_time, const at::Tensor& text) {
  const at::Tensor h = attention_->forward(resnets_[0]->forward(x, activated_time), text);
  return resnets_[1]->forward(h, activated_time);
}

UpBlockImpl::UpBlockImpl(const UNetConfig& c, int64_t place) {
  const int64_t level = c.levels() - 1 - place;
  const int64_t out = c.block_out_channels[level];
  const int64_t from_below = level + 1 < c.levels() ? c.block_out_channels[level + 1] : out;
  // The last skip of a level is the output of the level above it (finer), before this level's first ResNet.
  const int64_t last_skip = c.block_out_channels[std::max<int64_t>(level - 1, 0)];
  const int64_t count = c.layers_per_block[level] + 1;
  const bool attends = c.up_block_types[place] == "CrossAttnUpBlock2D";
  auto resnets = register_module("resnets", std::make_shared<NumberedImpl>());
  auto attentions = attends ? register_module("attentions", std::make_shared<NumberedImpl>()) : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t in = (i == 0 ? from_below : out) + (i + 1 == count ? last_skip : out);
    resnets_.push_back(resnets->add(i, make_resnet(c, in, out)));
    if (attends) attentions_.push_back(attentions->add(i, make_transformer(c, level)));
  }
  if (level > 0)
    upsampler_ =
        register_module("upsamplers", std::make_shared<NumberedImpl>())->add(0, std::make_shared<ResampleImpl>(out, 1));
}

at::Tensor UpBlockImpl::forward(at::Tensor x, const at::Tensor& activated_time, const at::Tensor& text,
                                std::vector<at::Tensor>& skips) {
  for (std::size_t i = 0; i < resnets_.size(); ++i) {
    x = resnets_[i]->forward(at::cat({x, skips.back()}, 1), activated_time);
    skips.pop_back();
    if (!attentions_.empty()) x = attentions_[i]->forward(x, text);
  }
  return upsampler_ ? upsampler_->forward(x, skips.back().sizes().slice(2)) : x;
}

}  // namespace memsieve::diffusion
