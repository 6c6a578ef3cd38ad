#include <ATen/ATen.h>
#include <trainer/loop/sample_sheet.h>

#include <algorithm>
#include <cmath>

namespace memsieve::trainer {

namespace {

int64_t side(int64_t pictures, int64_t pixels) {
  return pictures * (pixels + kSheetMargin) + kSheetMargin;
}

at::Tensor halved(const at::Tensor& images) {
  const at::Tensor mean = at::avg_pool2d(images.flatten(0, 1).to(at::kFloat), 2).round();
  return mean.to(at::kByte).unflatten(0, {images.size(0), images.size(1)});
}

}  // namespace

SampleSheet sample_sheet(const at::Tensor& images) {
  const int64_t prompts = images.size(0), seeds = images.size(1);
  const auto about = std::sqrt(static_cast<double>(prompts * seeds));
  const int64_t in_a_row = std::clamp<int64_t>(std::llround(about / static_cast<double>(seeds)), 1, prompts);
  const int64_t rows = (prompts + in_a_row - 1) / in_a_row, columns = in_a_row * seeds;
  const auto fits = [&](const at::Tensor& pictures, int64_t zoom) {
    return std::max(side(rows, zoom * pictures.size(3)), side(columns, zoom * pictures.size(4))) <= kSheetSide;
  };
  at::Tensor shown = images;
  while (!fits(shown, 1) && std::min(shown.size(3), shown.size(4)) > 1) shown = halved(shown);
  auto shape = shown.sizes().vec();
  shape[0] = rows * in_a_row;
  at::Tensor sheet = at::full(shape, 255, shown.options());
  sheet.narrow(0, 0, prompts).copy_(shown);
  const bool small = std::max(images.size(3), images.size(4)) < 128;
  return {sheet.view({rows, columns, shape[2], shape[3], shape[4]}), small && fits(shown, 2) ? 2 : 1};
}

}  // namespace memsieve::trainer
