#pragma once
// What every family of models has in common: the interface behind which training, drawing and adapters see it.

#include <torch/nn/module.h>
#include <diffusion/models/common/conditioning.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// What the rows of a data set are made of.
struct RowShape {
  /// {C, H, W}
  std::vector<int64_t> latents;
  /// width of the text embedding
  int64_t text_dim = 0;
  /// width of the pooled text, which comes with 6 time ids; 0 = neither
  int64_t pooled_dim = 0;
};

/// A model that predicts noise, velocity or picture from a noised latent. Its modules say the rest: the names of
/// module().named_parameters() are those of its files, and layers that are Adaptable (adapter.h) can get adapters.
class Denoiser {
 public:
  virtual ~Denoiser() = default;

  /// sample [B, C, H, W] of any float dtype; timestep [B] of integers or floats; all on the parameters' device. Returns
  /// [B, C, H, W]. Never waits for the device. DataError if shapes do not fit.
  virtual at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) = 0;

  virtual torch::nn::Module& module() = 0;

  /// Its folder in a pipeline and in a checkpoint, and what the names in an adapter's file begin with: "unet".
  virtual std::string component() const = 0;

  /// Keeps less for backward and computes it again there; the same gradients.
  virtual void set_gradient_checkpointing(bool on) = 0;

  /// Throws ConfigError, naming `from` and the remedy, unless the model takes such rows and answers in the
  /// shape of their latents.
  virtual void check_takes(const RowShape& rows, const std::string& from) const = 0;

  /// Writes the folder of one diffusers model (config.json and weights in the parameters' dtype). DataError.
  virtual void save(const std::string& folder) = 0;
};

}  // namespace memsieve::diffusion
