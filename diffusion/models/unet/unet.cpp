#include <ATen/ops/cat.h>
#include <ATen/ops/silu.h>
#include <memsieve/error.h>
#include <diffusion/models/unet/blocks.h>
#include <diffusion/models/common/group_norm.h>
#include <diffusion/models/unet/unet.h>

#include <sstream>

namespace memsieve::diffusion {

namespace nn = torch::nn;

struct UNet2DConditionModelImpl::Parts {
  Conv2d conv_in{nullptr}, conv_out{nullptr};
  std::shared_ptr<TimestepEmbeddingImpl> time_embedding, add_embedding;
  Linear encoder_hid_proj{nullptr};
  std::vector<std::shared_ptr<DownBlockImpl>> down;
  std::shared_ptr<MidBlockImpl> mid;
  std::vector<std::shared_ptr<UpBlockImpl>> up;
  nn::GroupNorm conv_norm_out{nullptr};
};

UNet2DConditionModelImpl::UNet2DConditionModelImpl(UNetConfig config)
    : config_(std::move(config)), parts_(std::make_unique<Parts>()) {
  check_unet_config(config_, "UNetConfig");
  const UNetConfig& c = config_;
  const int64_t first = c.block_out_channels.front();
  Parts& p = *parts_;
  p.conv_in = register_module("conv_in", Conv2d(c.in_channels, first, c.conv_in_kernel));
  p.time_embedding =
      register_module("time_embedding", std::make_shared<TimestepEmbeddingImpl>(first, c.time_embed_dim()));
  if (c.has_text_time())
    p.add_embedding = register_module(
        "add_embedding",
        std::make_shared<TimestepEmbeddingImpl>(*c.projection_class_embeddings_input_dim, c.time_embed_dim()));
  if (c.encoder_hid_dim)
    p.encoder_hid_proj = register_module("encoder_hid_proj", Linear(*c.encoder_hid_dim, c.cross_attention_dim.front()));
  auto down = register_module("down_blocks", std::make_shared<NumberedImpl>());
  auto up = register_module("up_blocks", std::make_shared<NumberedImpl>());
  for (int64_t i = 0; i < c.levels(); ++i) p.down.push_back(down->add(i, std::make_shared<DownBlockImpl>(c, i)));
  p.mid = register_module("mid_block", std::make_shared<MidBlockImpl>(c));
  for (int64_t i = 0; i < c.levels(); ++i) p.up.push_back(up->add(i, std::make_shared<UpBlockImpl>(c, i)));
  p.conv_norm_out =
      register_module("conv_norm_out", nn::GroupNorm(nn::GroupNormOptions(c.norm_num_groups, first).eps(c.norm_eps)));
  p.conv_out = register_module("conv_out", Conv2d(first, c.out_channels, c.conv_out_kernel));
}

UNet2DConditionModelImpl::~UNet2DConditionModelImpl() = default;

void UNet2DConditionModelImpl::set_gradient_checkpointing(bool on) {
  for (const auto& module : modules(/*include_self=*/false))
    if (auto* block = dynamic_cast<CheckpointableImpl*>(module.get())) block->set_gradient_checkpointing(on);
}

namespace {

// What is wrong with SDXL's two inputs; empty if nothing is.
std::string pooled_error(const UNetConfig& c, const Conditioning& in, int64_t rows) {
  std::ostringstream error;
  if (!c.has_text_time()) {
    if (in.pooled.defined() || in.time_ids.defined())
      error << (in.pooled.defined() ? "text_embeds" : "time_ids")
            << " given, but the model has no addition_embed_type \"text_time\"";
  } else if (!in.pooled.defined() || !in.time_ids.defined()) {
    error << (in.pooled.defined() ? "time_ids" : "text_embeds")
          << " missing: the model's addition_embed_type is \"text_time\"";
  } else if (in.time_ids.dim() != 2 || in.time_ids.size(0) != rows) {
    error << "time_ids is " << in.time_ids.sizes() << ", must be [" << rows << ", N]";
  } else if (const int64_t width = c.pooled_dim(in.time_ids.size(1));
             in.pooled.dim() != 2 || in.pooled.size(0) != rows || in.pooled.size(1) != width) {
    error << "text_embeds is " << in.pooled.sizes() << ", must be [" << rows << ", " << width << "] with "
          << in.time_ids.size(1) << " time_ids per row";
  }
  return error.str();
}

}  // namespace

void UNet2DConditionModelImpl::check_inputs(const at::Tensor& sample, const at::Tensor& timestep,
                                            const Conditioning& in) const {
  std::ostringstream error;
  if (sample.dim() != 4 || sample.size(1) != config_.in_channels)
    error << "sample is " << sample.sizes() << ", must be [B, " << config_.in_channels << ", H, W]";
  else if (timestep.dim() > 1 || (timestep.dim() == 1 && timestep.size(0) != sample.size(0)))
    error << "timestep is " << timestep.sizes() << ", must be [" << sample.size(0) << "] or a scalar";
  else if (in.text.dim() != 3 || in.text.size(0) != sample.size(0) || in.text.size(2) != config_.text_dim())
    error << "encoder_hidden_states is " << in.text.sizes() << ", must be [" << sample.size(0) << ", L, "
          << config_.text_dim() << "]";
  else
    error << pooled_error(config_, in, sample.size(0));
  if (!error.str().empty()) throw DataError("unet: " + error.str());
}

// Every ResNet block wants the embedding after SiLU, so that is done once.
at::Tensor UNet2DConditionModelImpl::activated_time(const at::Tensor& timestep, const Conditioning& in, int64_t rows) {
  Parts& p = *parts_;
  const UNetConfig& c = config_;
  const auto dtype = p.conv_in->weight.scalar_type();
  const auto waves = [&](const at::Tensor& numbers, int64_t dim) {
    return timestep_features(numbers, dim, c.flip_sin_to_cos, c.freq_shift);
  };
  const at::Tensor steps = timestep.dim() == 0 ? timestep.expand({rows}) : timestep;
  at::Tensor time = p.time_embedding->forward(waves(steps, c.block_out_channels.front()).to(dtype));
  if (p.add_embedding) {
    const at::Tensor ids = waves(in.time_ids.flatten(), *c.addition_time_embed_dim).view({rows, -1});
    time = time + p.add_embedding->forward(at::cat({in.pooled.to(dtype), ids.to(dtype)}, 1));
  }
  return at::silu(time);
}

at::Tensor UNet2DConditionModelImpl::forward(const at::Tensor& sample, const at::Tensor& timestep,
                                             const Conditioning& condition) {
  check_inputs(sample, timestep, condition);
  Parts& p = *parts_;
  const auto dtype = p.conv_in->weight.scalar_type();
  const at::Tensor time = activated_time(timestep, condition, sample.size(0));
  at::Tensor text = condition.text.to(dtype);
  if (p.encoder_hid_proj) text = p.encoder_hid_proj(text);

  at::Tensor x = p.conv_in(sample.to(dtype).contiguous(at::MemoryFormat::ChannelsLast));
  std::vector<at::Tensor> skips = {x};
  for (auto& block : p.down) x = block->forward(x, time, text, skips);
  x = p.mid->forward(x, time, text);
  for (auto& block : p.up) x = block->forward(x, time, text, skips);
  return p.conv_out(group_norm(p.conv_norm_out, x, true));
}

}  // namespace memsieve::diffusion
