#include <ATen/ATen.h>
#include <audit/measure/preprocessing.h>

#include <algorithm>
#include <cmath>

namespace memsieve::audit {

namespace {

constexpr std::array<double, 3> kImageNetMean{0.485, 0.456, 0.406}, kImageNetStd{0.229, 0.224, 0.225};
constexpr std::array<double, 3> kHalf{0.5, 0.5, 0.5};
constexpr std::array<double, 3> kClipMean{0.48145466, 0.4578275, 0.40821073};
constexpr std::array<double, 3> kClipStd{0.26862954, 0.26130258, 0.27577711};

/// Height and width of a resized picture. The longer edge is cut to a whole number, as torchvision's Resize does.
std::array<int64_t, 2> resized(int64_t height, int64_t width, const Preset& preset) {
  if (preset.square) return {preset.size, preset.size};
  const int64_t longer = preset.size * std::max(height, width) / std::min(height, width);
  return height <= width ? std::array<int64_t, 2>{preset.size, longer} : std::array<int64_t, 2>{longer, preset.size};
}

/// Halves go to the even number, as Python's round has them in torchvision's CenterCrop.
int64_t middle(int64_t length, int64_t part) {
  return static_cast<int64_t>(std::nearbyint(static_cast<double>(length - part) / 2));
}

at::Tensor by_channel(const std::array<double, 3>& values, const at::Tensor& like) {
  return at::tensor(at::ArrayRef<double>(values), like.options()).view({1, 3, 1, 1});
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {.name = "sscd", .size = 288, .mean = kImageNetMean, .std = kImageNetStd},
      {.name = "sscd_320", .size = 320, .square = true, .mean = kImageNetMean, .std = kImageNetStd},
      {.name = "sscd_wen", .size = 256, .crop = 224, .mean = kHalf, .std = kHalf},
      {.name = "sscd_membench", .size = 288, .square = true, .mean = kImageNetMean, .std = kImageNetStd},
      {.name = "clip", .size = 224, .crop = 224, .bicubic = true, .mean = kClipMean, .std = kClipStd},
  };
  return all;
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  return names;
}

const Preset& preset_named(const std::string& name) {
  const auto is_named = [&](const Preset& preset) { return preset.name == name; };
  return *std::find_if(presets().begin(), presets().end(), is_named);
}

at::Tensor preprocessed(const at::Tensor& pictures, const Preset& preset) {
  const std::array<int64_t, 2> size = resized(pictures.size(2), pictures.size(3), preset);
  at::Tensor x = pictures.to(at::kFloat);
  x = preset.bicubic ? at::_upsample_bicubic2d_aa(x, size, /*align_corners=*/false)
                     : at::_upsample_bilinear2d_aa(x, size, /*align_corners=*/false);
  x = x.round().clamp(0, 255) / 255;
  if (preset.crop > 0)
    x = x.narrow(2, middle(size[0], preset.crop), preset.crop).narrow(3, middle(size[1], preset.crop), preset.crop);
  return (x - by_channel(preset.mean, x)) / by_channel(preset.std, x);
}

}  // namespace memsieve::audit
