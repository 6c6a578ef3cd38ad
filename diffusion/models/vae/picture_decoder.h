#pragma once
// From what a model draws to pictures that a person can look at.

#include <diffusion/data/dataset.h>
#include <diffusion/models/vae/vae_decoder.h>

#include <optional>
#include <string>

namespace memsieve::diffusion {

/// The keys of a configuration that messages about its VAE name, with their places ("run.yaml:5: sampling.vae").
struct VaeKeys {
  /// names the VAE's folder
  std::string vae = "vae";
  /// asks for pictures at all
  std::string asked = "pictures";
};

class PictureDecoder {
 public:
  /// For what a model of `data` draws: the data set's own codec, or for latents the VAE in `vae_folder` ("" = none), in
  /// float32 on `device`. Throws ConfigError, naming the key, where there is neither or the VAE is not the one that the
  /// latents come from.
  PictureDecoder(const std::string& vae_folder, const Dataset& data, c10::Device device, const VaeKeys& keys = {});

  /// Which VAE it is: 16 hexadecimal digits (diffusion/models/lora/lora.h) and what its weights do not show; "codec"
  /// for the data set's own. Reads every parameter.
  std::string identity() const;

  /// Pixels per latent, in each direction.
  int64_t factor() const;
  /// [B, C, H, W] float32 -> [B, 3, factor H, factor W] uint8, same device; from the VAE's -1..1 as diffusers does it:
  /// rounded, clamped.
  at::Tensor decode(const at::Tensor& latents);

 private:
  std::optional<Codec> codec_;
  VaeDecoder vae_{nullptr};
};

}  // namespace memsieve::diffusion
