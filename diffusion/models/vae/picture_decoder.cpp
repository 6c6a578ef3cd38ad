#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/models/lora/lora.h>
#include <diffusion/models/vae/picture_decoder.h>

#include <sstream>

namespace memsieve::diffusion {

namespace {

/// The VAE must be the one that made the latents, as far as numbers show it.
void check_vae(const VaeConfig& vae, const Dataset& data, const std::string& key) {
  const auto expect = [&](const std::string& what, auto vae_has, auto data_has) {
    if (vae_has == data_has) return;
    throw ConfigError(key + ": the VAE's " + what + " is " + std::to_string(vae_has) + ", but " + data.path() +
                      " has " + std::to_string(data_has) + "; name the VAE that the latents were made with");
  };
  expect("latent_channels", vae.latent_channels, data.latent_shape().at(0));
  expect("scaling_factor", vae.scaling_factor, data.latent_scale().scaling_factor);
  expect("shift_factor", vae.shift_factor, data.latent_scale().shift_factor);
  if (vae.out_channels != 3)
    throw ConfigError(key + ": the VAE makes pictures of " + std::to_string(vae.out_channels) +
                      " channels; only 3 can be shown");
}

}  // namespace

PictureDecoder::PictureDecoder(const std::string& vae_folder, const Dataset& data, c10::Device device,
                               const VaeKeys& keys)
    : codec_(data.codec()) {
  if (codec_) {
    if (vae_folder.empty()) return;
    throw ConfigError(keys.vae + ": " + data.path() + " holds pictures, not latents; leave the key out");
  }
  if (vae_folder.empty()) {
    throw ConfigError(keys.asked + ": " + data.path() +
                      " holds latents; name the pipeline's vae folder in sampling.vae to decode them, or set "
                      "sampling.every to 0");
  }
  vae_ = load_vae_decoder(vae_folder);
  check_vae(vae_->config(), data, keys.vae);
  vae_->to(device);
}

std::string PictureDecoder::identity() const {
  if (codec_) return "codec";
  const VaeConfig& config = vae_->config();
  std::ostringstream text;
  text.precision(17);
  text << fingerprint(*vae_.ptr()) << ", " << config.norm_num_groups << " groups, scaled by " << config.scaling_factor
       << ", shifted by " << config.shift_factor;
  return text.str();
}

int64_t PictureDecoder::factor() const {
  return codec_ ? codec_->factor : vae_->config().scale();
}

at::Tensor PictureDecoder::decode(const at::Tensor& latents) {
  if (codec_) return codec_->decode(latents);
  const at::Tensor x = (vae_->decode(latents) * 0.5 + 0.5) * 255;
  return x.round().nan_to_num(0.0, 255.0, 0.0).clamp_(0, 255).to(at::kByte).contiguous();
}

}  // namespace memsieve::diffusion
