#pragma once
// How drawn pictures are laid out to be looked at.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace memsieve::trainer {

/// white pixels around each picture of a sheet
inline constexpr int64_t kSheetMargin = 2;
/// pixels that a sheet is wide and high at most: a PNG's readers have their limits, and no screen is larger
inline constexpr int64_t kSheetSide = 8192;

struct SampleSheet {
  /// uint8 [rows, columns, 3, H, W], as write_contact_sheet takes them
  at::Tensor images;
  int64_t zoom = 1;
};

/// `images`, uint8 [prompts, seeds, 3, H, W] on the CPU, as a sheet about as wide as high, the pictures of a prompt
/// side by side. Pictures below 128 pixels are shown twice as large; all are halved, to one pixel at the least, until
/// the sheet is at most kSheetSide wide and high.
SampleSheet sample_sheet(const at::Tensor& images);

}  // namespace memsieve::trainer
