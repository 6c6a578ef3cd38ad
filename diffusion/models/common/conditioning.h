#pragma once
// What a UNet is conditioned on besides the timestep.

#include <ATen/core/Tensor.h>

namespace memsieve::diffusion {

/// Fields are undefined where the model (or the data set) has no such input. All on one device. Converts from a text
/// embedding alone, which is all that most models take.
struct Conditioning {
  Conditioning() = default;
  // NOLINTNEXTLINE(google-explicit-constructor)
  Conditioning(at::Tensor text_, at::Tensor pooled_ = {}, at::Tensor time_ids_ = {});

  /// [B, L, D] float: encoder_hidden_states
  at::Tensor text;
  /// [B, P] float: SDXL's text_embeds
  at::Tensor pooled;
  /// [B, 6] float32: SDXL's original height, width, crop top, left, target height, width
  at::Tensor time_ids;

  /// Rows `which` [k] int64 on the same device.
  Conditioning select(const at::Tensor& which) const;
  /// `rows` rows from `begin` on, as views.
  Conditioning narrow(int64_t begin, int64_t rows) const;
  /// Pinned and copied without waiting where `device` is a GPU.
  Conditioning to(c10::Device device) const;
  /// The same rows with the empty caption: text and pooled from `null` (text [L, D], pooled [P]); time_ids stay.
  Conditioning uncaptioned(const Conditioning& null) const;
  /// Rows for which `without` [B] bool holds with the empty caption, the others as they are.
  Conditioning uncaptioned_where(const at::Tensor& without, const Conditioning& null) const;
};

/// Rows of `a`, then rows of `b`; both have the same fields.
Conditioning cat(const Conditioning& a, const Conditioning& b);

}  // namespace memsieve::diffusion
