#pragma once
// The decoder of diffusers' AutoencoderKL: what turns latents into pictures, for previews.

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <memory>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// What of an AutoencoderKL's config.json the decoder needs; names and defaults are diffusers'.
struct VaeConfig {
  int64_t latent_channels = 4;
  int64_t out_channels = 3;
  std::vector<int64_t> block_out_channels = {64};
  int64_t layers_per_block = 1;
  int64_t norm_num_groups = 32;
  double scaling_factor = 0.18215;
  /// null in the file means 0
  double shift_factor = 0;
  bool use_post_quant_conv = true;
  bool mid_block_add_attention = true;

  /// Pixels per latent, in each direction.
  int64_t scale() const { return int64_t{1} << (block_out_channels.size() - 1); }
};

/// ConfigError naming file, key and value for what this decoder lacks, an unknown key or a wrong type. Keys of the
/// encoder alone are not looked at.
VaeConfig read_vae_config(const std::string& path);

class VaeDecoderImpl : public torch::nn::Module {
 public:
  explicit VaeDecoderImpl(const VaeConfig& config);
  ~VaeDecoderImpl() override;

  /// latents [B, latent_channels, H, W] as the UNet is trained on them (latents = (z - shift_factor) * scaling_factor),
  /// any float dtype, on the parameters' device. Returns [B, out_channels, scale H, scale W] float32, about -1..1, not
  /// clamped. Without gradient; a row at a time, so that the memory is that of one picture. Never waits for the device.
  /// DataError if the shape does not fit.
  at::Tensor decode(const at::Tensor& latents);

  const VaeConfig& config() const { return config_; }

 private:
  struct Parts;
  at::Tensor decode_row(const at::Tensor& z);

  VaeConfig config_;
  std::unique_ptr<Parts> parts_;
};
TORCH_MODULE(VaeDecoder);

/// Reads a diffusers `vae` folder: config.json and its weights as load_unet does. Parameters become float32 on the CPU.
/// Takes attention weights under their present names (to_q, to_k, to_v, to_out.0) and under the older ones (query, key,
/// value, proj_attn); leaves the encoder's alone. Errors as load_unet's.
VaeDecoder load_vae_decoder(const std::string& folder);

}  // namespace memsieve::diffusion
