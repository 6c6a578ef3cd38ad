#pragma once
// From what a model draws to pictures that a person can look at.

#include <diffusion/data/dataset.h>
#include <trainer/config/train_config.h>
#include <diffusion/models/vae/vae_decoder.h>
#include <trainer/rooms.h>

#include <optional>

namespace memsieve::trainer {

class PictureDecoder {
 public:
  /// For what a model of `data` draws: the data set's own codec, or for latents the VAE in the folder sampling.vae, in
  /// float32 on `device`. Throws ConfigError, naming the key, where there is neither or the VAE is not the one that the
  /// latents come from.
  PictureDecoder(const TrainConfig& config, const Dataset& data, c10::Device device);

  /// Pixels per latent, in each direction.
  int64_t factor() const;
  /// [B, C, H, W] float32 -> [B, 3, factor H, factor W] uint8, same device; from the VAE's -1..1 as diffusers does it:
  /// rounded, clamped.
  at::Tensor decode(const at::Tensor& latents);

 private:
  std::optional<Codec> codec_;
  VaeDecoder vae_{nullptr};
};

}  // namespace memsieve::trainer
