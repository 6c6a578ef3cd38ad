#pragma once
// From stored 8-bit pictures to what the model sees, and back.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

namespace memsieve::diffusion {

/// x = (u8 / 255 - mean) / std per colour channel, then torch's pixel_unshuffle by `factor`.
struct Codec {
  int64_t factor = 1;
  std::array<double, 3> mean{0, 0, 0};
  std::array<double, 3> std{1, 1, 1};

  /// [B, 3, H, W] uint8 -> [B, 3*factor^2, H/factor, W/factor] float32, same device.
  at::Tensor encode(const at::Tensor& images) const;
  /// The inverse: rounded, clamped to 0..255 (a NaN becomes 0). Any float dtype in, uint8 out, same device.
  at::Tensor decode(const at::Tensor& latents) const;
};

}  // namespace memsieve::diffusion
