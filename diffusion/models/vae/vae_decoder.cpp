#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <memsieve/error.h>
#include <diffusion/io/text_file.h>
#include <diffusion/models/common/group_norm.h>
#include <diffusion/models/common/json_reader.h>
#include <diffusion/models/common/layers.h>
#include <diffusion/models/diffusers/model_folder.h>
#include <diffusion/models/vae/vae_decoder.h>

#include <sstream>

namespace memsieve::diffusion {

namespace nn = torch::nn;

namespace {

constexpr double eps = 1e-6;

}  // namespace

// Self-attention of one head over all pixels, added to its input.
class PixelAttentionImpl : public nn::Module {
 public:
  PixelAttentionImpl(int64_t channels, int64_t groups)
      : norm_(register_module("group_norm", nn::GroupNorm(nn::GroupNormOptions(groups, channels).eps(eps)))),
        to_q_(register_module("to_q", Linear(channels, channels))),
        to_k_(register_module("to_k", Linear(channels, channels))),
        to_v_(register_module("to_v", Linear(channels, channels))) {
    to_out_ = register_module("to_out", std::make_shared<NumberedImpl>())->add(0, Linear(channels, channels).ptr());
  }
  at::Tensor forward(const at::Tensor& x) {
    const at::Tensor pixels = norm_(x).flatten(2).transpose(1, 2).unsqueeze(1);  // [B, 1, H * W, C]
    const at::Tensor mixed = at::scaled_dot_product_attention(to_q_(pixels), to_k_(pixels), to_v_(pixels));
    return x + to_out_(mixed).squeeze(1).transpose(1, 2).reshape(x.sizes());
  }

 private:
  nn::GroupNorm norm_;
  Linear to_q_, to_k_, to_v_, to_out_{nullptr};
};

namespace {

std::shared_ptr<ResnetBlock2DImpl> make_resnet(const VaeConfig& c, int64_t in, int64_t out) {
  return std::make_shared<ResnetBlock2DImpl>(ResnetBlock2DImpl::Options{in, out, 0, c.norm_num_groups, eps});
}

}  // namespace

struct VaeDecoderImpl::Parts {
  struct Level {
    std::vector<std::shared_ptr<ResnetBlock2DImpl>> resnets;
    std::shared_ptr<ResampleImpl> upsampler;
  };
  Conv2d post_quant_conv{nullptr}, conv_in{nullptr}, conv_out{nullptr};
  std::shared_ptr<ResnetBlock2DImpl> mid[2];
  std::shared_ptr<PixelAttentionImpl> attention;
  std::vector<Level> levels;  // coarsest first
  nn::GroupNorm conv_norm_out{nullptr};
};

VaeDecoderImpl::VaeDecoderImpl(const VaeConfig& c) : config_(c), parts_(std::make_unique<Parts>()) {
  Parts& p = *parts_;
  const int64_t first = c.block_out_channels.front(), last = c.block_out_channels.back();
  if (c.use_post_quant_conv)
    p.post_quant_conv = register_module("post_quant_conv", Conv2d(c.latent_channels, c.latent_channels, 1));
  auto decoder = register_module("decoder", std::make_shared<NumberedImpl>());
  const auto numbered = [](auto& parent, const char* name) {
    return parent->register_module(name, std::make_shared<NumberedImpl>());
  };
  p.conv_in = decoder->register_module("conv_in", Conv2d(c.latent_channels, last, 3));
  auto mid = numbered(decoder, "mid_block");
  if (c.mid_block_add_attention)
    p.attention = numbered(mid, "attentions")->add(0, std::make_shared<PixelAttentionImpl>(last, c.norm_num_groups));
  auto mid_resnets = numbered(mid, "resnets");
  for (int i = 0; i < 2; ++i) p.mid[i] = mid_resnets->add(i, make_resnet(c, last, last));
  auto up = numbered(decoder, "up_blocks");
  int64_t in = last;
  for (std::size_t i = 0; i < c.block_out_channels.size(); ++i) {
    const int64_t out = c.block_out_channels[c.block_out_channels.size() - 1 - i];
    auto block = up->add(i, std::make_shared<NumberedImpl>());
    auto resnets = numbered(block, "resnets");
    Parts::Level& level = p.levels.emplace_back();
    for (int64_t j = 0; j <= c.layers_per_block; ++j)
      level.resnets.push_back(resnets->add(j, make_resnet(c, j == 0 ? in : out, out)));
    if (i + 1 < c.block_out_channels.size())
      level.upsampler = numbered(block, "upsamplers")->add(0, std::make_shared<ResampleImpl>(out, 1));
    in = out;
  }
  p.conv_norm_out =
      decoder->register_module("conv_norm_out", nn::GroupNorm(nn::GroupNormOptions(c.norm_num_groups, first).eps(eps)));
  p.conv_out = decoder->register_module("conv_out", Conv2d(first, c.out_channels, 3));
}

VaeDecoderImpl::~VaeDecoderImpl() = default;

at::Tensor VaeDecoderImpl::decode(const at::Tensor& latents) {
  if (latents.dim() != 4 || latents.size(1) != config_.latent_channels || latents.size(0) == 0) {
    std::ostringstream error;
    error << "vae: latents are " << latents.sizes() << ", must be [B, " << config_.latent_channels << ", H, W]";
    throw DataError(error.str());
  }
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> rows;
  for (const at::Tensor& row : latents.split(1)) rows.push_back(decode_row(row));
  return at::cat(rows);
}

at::Tensor VaeDecoderImpl::decode_row(const at::Tensor& latents) {
  Parts& p = *parts_;
  at::Tensor x = latents.to(p.conv_in->weight.scalar_type()) / config_.scaling_factor + config_.shift_factor;
  x = x.contiguous(at::MemoryFormat::ChannelsLast);
  if (p.post_quant_conv) x = p.post_quant_conv(x);
  x = p.mid[0]->forward(p.conv_in(x), {});
  if (p.attention) x = p.attention->forward(x);
  x = p.mid[1]->forward(x, {});
  for (const auto& level : p.levels) {
    for (const auto& resnet : level.resnets) x = resnet->forward(x, {});
    if (level.upsampler) x = level.upsampler->forward(x, {2 * x.size(2), 2 * x.size(3)});
  }
  return p.conv_out(group_norm(p.conv_norm_out, x, true)).to(at::kFloat).contiguous();
}

namespace {

// Weights of the 3 x 3 convolutions. A double cannot overflow.
double least_parameters(const VaeConfig& c) {
  const auto real = [](int64_t n) { return static_cast<double>(n); };
  const double latent = real(c.latent_channels), coarsest = real(c.block_out_channels.back());
  double count = latent * latent + 9 * latent * coarsest + 4 * 9 * coarsest * coarsest +
                 9 * real(c.block_out_channels.front()) * real(c.out_channels);
  for (const int64_t width : c.block_out_channels)
    count += real(c.layers_per_block + 1) * 2 * 9 * real(width) * real(width);
  return count;
}

}  // namespace

VaeConfig read_vae_config(const std::string& path) {
  const UnusedFeatures unused = {
      {"act_fn", {"silu", "swish"}}, {"latents_mean", {nullptr}}, {"latents_std", {nullptr}}};
  JsonReader reader(read_text<ConfigError>(path, "a VAE folder holds config.json and its weights"), path,
                    "AutoencoderKL");
  VaeConfig c;
  std::vector<std::string> up(1, "UpDecoderBlock2D");
  std::optional<double> shift;
  reader.read("latent_channels", c.latent_channels);
  reader.read("out_channels", c.out_channels);
  reader.read("block_out_channels", c.block_out_channels);
  reader.read("up_block_types", up);
  reader.read("layers_per_block", c.layers_per_block);
  reader.read("norm_num_groups", c.norm_num_groups);
  reader.read("scaling_factor", c.scaling_factor);
  reader.read("shift_factor", shift);
  reader.read("use_post_quant_conv", c.use_post_quant_conv);
  reader.read("mid_block_add_attention", c.mid_block_add_attention);
  // The encoder's, and the precision that other programs run in.
  for (const char* key : {"in_channels", "down_block_types", "sample_size", "use_quant_conv", "force_upcast"})
    reader.skip(key);
  reader.reject_the_rest(unused);
  c.shift_factor = shift.value_or(0);
  if (c.block_out_channels.empty() || static_cast<int64_t>(c.block_out_channels.size()) > kMostLevels)
    throw ConfigError(path + ": block_out_channels: must name 1 to " + std::to_string(kMostLevels) + " levels");
  if (c.layers_per_block > kMostLayers)
    fail_config(path, "layers_per_block", c.layers_per_block, "must be at most " + std::to_string(kMostLayers));
  if (up != std::vector<std::string>(c.block_out_channels.size(), "UpDecoderBlock2D"))
    fail_config(path, "up_block_types", up,
                "must be \"UpDecoderBlock2D\" for each of " + std::to_string(c.block_out_channels.size()) +
                    " levels, as block_out_channels has");
  for (const int64_t channels : c.block_out_channels)
    if (channels % c.norm_num_groups != 0)
      fail_config(path, "block_out_channels", c.block_out_channels,
                  "each must be a multiple of norm_num_groups, " + std::to_string(c.norm_num_groups));
  check_parameter_count(path, least_parameters(c));
  if (!(c.scaling_factor > 0)) fail_config(path, "scaling_factor", c.scaling_factor, "must be above 0");
  return c;
}

namespace {

// Names of attention weights before diffusers 0.15.
std::string present_name(std::string name) {
  const std::string attention = "decoder.mid_block.attentions.0.";
  if (!name.starts_with(attention)) return name;
  for (const auto& [old, present] :
       {std::pair{"query.", "to_q."}, {"key.", "to_k."}, {"value.", "to_v."}, {"proj_attn.", "to_out.0."}})
    if (name.compare(attention.size(), std::string(old).size(), old) == 0)
      return name.replace(attention.size(), std::string(old).size(), present);
  return name;
}

}  // namespace

VaeDecoder load_vae_decoder(const std::string& folder) {
  const VaeConfig config = read_vae_config(config_path(folder));
  VaeDecoder model = [&] {
    const Unfilled unfilled;
    return VaeDecoder(config);
  }();
  FolderWeights weights = read_weights(folder), kept{{}, weights.where};
  for (auto& [name, tensor] : weights.tensors) {
    if (name.starts_with("encoder.") || name.starts_with("quant_conv.")) continue;
    if (!kept.tensors.emplace(present_name(name), tensor).second)
      throw DataError(weights.where + ": tensor " + in_quotes(name) + ": there under its present name too");
  }
  weights.tensors.clear();
  fill_parameters(*model, std::move(kept));
  return model;
}

}  // namespace memsieve::diffusion
