#include <ATen/ops/silu.h>
#include <memsieve/error.h>
#include <trainer/nn/blocks.h>
#include <trainer/nn/unet.h>

#include <sstream>

namespace memsieve::trainer {

namespace nn = torch::nn;

struct UNet2DConditionModelImpl::Parts {
  Conv2d conv_in{nullptr}, conv_out{nullptr};
  std::shared_ptr<TimestepEmbeddingImpl> time_embedding;
  Linear encoder_hid_proj{nullptr};
  std::vector<std::shared_ptr<DownBlockImpl>> down;
  std::shared_ptr<MidBlockImpl> mid;
  std::vector<std::shared_ptr<UpBlockImpl>> up;
  nn::GroupNorm conv_norm_out{nullptr};
};

namespace {

Conv2d make_conv(int64_t in, int64_t out, int64_t kernel) {
  return Conv2d(nn::Conv2dOptions(in, out, kernel).padding((kernel - 1) / 2));
}

}  // namespace

UNet2DConditionModelImpl::UNet2DConditionModelImpl(UNetConfig config)
    : config_(std::move(config)), parts_(std::make_unique<Parts>()) {
  check_unet_config(config_, "UNetConfig");
  const UNetConfig& c = config_;
  const int64_t first = c.block_out_channels.front();
  Parts& p = *parts_;
  p.conv_in = register_module("conv_in", make_conv(c.in_channels, first, c.conv_in_kernel));
  p.time_embedding =
      register_module("time_embedding", std::make_shared<TimestepEmbeddingImpl>(first, c.time_embed_dim()));
  if (c.encoder_hid_dim)
    p.encoder_hid_proj =
        register_module("encoder_hid_proj", Linear(*c.encoder_hid_dim, c.cross_attention_dim.front()));
  auto down = register_module("down_blocks", std::make_shared<NumberedImpl>());
  auto up = register_module("up_blocks", std::make_shared<NumberedImpl>());
  for (int64_t i = 0; i < c.levels(); ++i)
    p.down.push_back(down->add(i, std::make_shared<DownBlockImpl>(c, i)));
  p.mid = register_module("mid_block", std::make_shared<MidBlockImpl>(c));
  for (int64_t i = 0; i < c.levels(); ++i) p.up.push_back(up->add(i, std::make_shared<UpBlockImpl>(c, i)));
  p.conv_norm_out = register_module(
      "conv_norm_out", nn::GroupNorm(nn::GroupNormOptions(c.norm_num_groups, first).eps(c.norm_eps)));
  p.conv_out = register_module("conv_out", make_conv(first, c.out_channels, c.conv_out_kernel));
}

UNet2DConditionModelImpl::~UNet2DConditionModelImpl() = default;

void UNet2DConditionModelImpl::check_inputs(const at::Tensor& sample, const at::Tensor& timestep,
                                            const at::Tensor& text) const {
  std::ostringstream error;
  if (sample.dim() != 4 || sample.size(1) != config_.in_channels)
    error << "sample is " << sample.sizes() << ", must be [B, " << config_.in_channels << ", H, W]";
  else if (timestep.dim() > 1 || (timestep.dim() == 1 && timestep.size(0) != sample.size(0)))
    error << "timestep is " << timestep.sizes() << ", must be [" << sample.size(0) << "] or a scalar";
  else if (text.dim() != 3 || text.size(0) != sample.size(0) || text.size(2) != config_.text_dim())
    error << "encoder_hidden_states is " << text.sizes() << ", must be [" << sample.size(0) << ", L, "
          << config_.text_dim() << "]";
  if (!error.str().empty()) throw DataError("unet: " + error.str());
}

at::Tensor UNet2DConditionModelImpl::forward(const at::Tensor& sample, const at::Tensor& timestep,
                                             const Conditioning& condition) {
  check_inputs(sample, timestep, condition.text);
  Parts& p = *parts_;
  const auto dtype = p.conv_in->weight.scalar_type();
  const at::Tensor steps = timestep.dim() == 0 ? timestep.expand({sample.size(0)}) : timestep;
  const at::Tensor features = timestep_features(steps, config_.block_out_channels.front(),
                                                config_.flip_sin_to_cos, config_.freq_shift);
  // Every ResNet block wants the embedding after SiLU, so that is done once.
  const at::Tensor time = at::silu(p.time_embedding->forward(features.to(dtype)));
  at::Tensor text = condition.text.to(dtype);
  if (p.encoder_hid_proj) text = p.encoder_hid_proj(text);

  at::Tensor x = p.conv_in(sample.to(dtype).contiguous(at::MemoryFormat::ChannelsLast));
  std::vector<at::Tensor> skips = {x};
  for (auto& block : p.down) x = block->forward(x, time, text, skips);
  x = p.mid->forward(x, time, text);
  for (auto& block : p.up) x = block->forward(x, time, text, skips);
  return p.conv_out(group_norm_silu(p.conv_norm_out, x));
}

}  // namespace memsieve::trainer
