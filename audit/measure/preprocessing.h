#pragma once
// How a picture becomes what an extractor of features was trained on.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::audit {

struct Preset {
  std::string name;
  /// of the shorter edge, or of both where `square`
  int64_t size = 0;
  bool square = false;
  /// side of the square that is cut from the middle; 0 = the whole picture
  int64_t crop = 0;
  bool bicubic = false;
  /// by colour channel: (value - mean) / std of values 0 .. 1
  std::array<double, 3> mean{}, std{};
};

/// sscd, sscd_320, sscd_wen, sscd_membench and clip, as docs/audit_benchmark.md lists them.
const std::vector<Preset>& presets();
std::vector<std::string> preset_names();
/// `name` is one of preset_names().
const Preset& preset_named(const std::string& name);

/// [B, 3, H, W] uint8 -> [B, 3, h, w] float32, as torchvision does it: resized with antialiasing, rounded to whole
/// values, cut, scaled.
at::Tensor preprocessed(const at::Tensor& pictures, const Preset& preset);

}  // namespace memsieve::audit
