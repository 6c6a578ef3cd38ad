#pragma once
// Pictures drawn during training: as a PNG to look at, and as numbers to compute with.

#include <ATen/core/Tensor.h>

#include <string>

namespace memsieve::diffusion {

struct ContactSheetOptions {
  /// white pixels around each picture
  int64_t margin = 2;
  /// each pixel becomes zoom x zoom
  int64_t zoom = 1;
  /// of the whole sheet, in each direction: where it would be larger the zoom is halved, then the pictures are, until
  /// it fits or they are a pixel wide or high
  int64_t most_pixels = 8192;
};

/// Writes `images` (uint8 [rows, columns, 3, H, W]) as one RGB PNG grid, to a temporary name and renamed. Throws
/// DataError for a wrong shape or dtype, or a file that cannot be written.
void write_contact_sheet(const std::string& path, const at::Tensor& images, const ContactSheetOptions& options = {});

/// Writes `images` (uint8 [prompts, seeds, 3, H, W]) as /images in an HDF5 file, to a temporary name and renamed.
/// Throws DataError.
void write_samples(const std::string& path, const at::Tensor& images);

}  // namespace memsieve::diffusion
