#include <ATen/ATen.h>
#include <trainer/loop/sample_sheet.h>

#include <algorithm>
#include <catch2/catch.hpp>

using memsieve::trainer::kSheetMargin;
using memsieve::trainer::kSheetSide;
using memsieve::trainer::sample_sheet;

namespace {

int64_t longest(const memsieve::trainer::SampleSheet& sheet) {
  const auto pixels = [&](int64_t pictures, int64_t side) {
    return pictures * (sheet.zoom * side + kSheetMargin) + kSheetMargin;
  };
  return std::max(pixels(sheet.images.size(0), sheet.images.size(3)),
                  pixels(sheet.images.size(1), sheet.images.size(4)));
}

}  // namespace

TEST_CASE("small pictures are shown as they are, twice as large, those of a prompt side by side") {
  const at::Tensor images = at::randint(0, 256, {5, 2, 3, 8, 6}, at::kByte);
  const auto sheet = sample_sheet(images);
  CHECK(sheet.zoom == 2);
  REQUIRE(sheet.images.sizes() == at::IntArrayRef{3, 4, 3, 8, 6});
  for (int64_t prompt = 0; prompt < 5; ++prompt)
    for (int64_t seed = 0; seed < 2; ++seed)
      CHECK(sheet.images[prompt / 2][2 * (prompt % 2) + seed].equal(images[prompt][seed]));
  CHECK(sheet.images[2].narrow(0, 2, 2).eq(255).all().item<bool>());
}

TEST_CASE("pictures of 128 pixels and more are not shown larger") {
  CHECK(sample_sheet(at::zeros({1, 1, 3, 127, 127}, at::kByte)).zoom == 2);
  CHECK(sample_sheet(at::zeros({1, 1, 3, 128, 64}, at::kByte)).zoom == 1);
}

TEST_CASE("a sheet of many large pictures stays within what can be read") {
  const int64_t pictures[][4] = {{100, 4, 1024, 1024}, {1, 400, 512, 512}, {500, 1, 100, 100}, {3, 1, 5000, 10}};
  for (const auto& [prompts, seeds, height, width] : pictures) {
    CAPTURE(prompts, seeds, height, width);
    const at::Tensor all = at::full({1, 1, 3, height, width}, 77, at::kByte).expand({prompts, seeds, 3, height, width});
    const auto sheet = sample_sheet(all);
    CHECK(longest(sheet) <= kSheetSide);
    CHECK(sheet.images[0][0].eq(77).all().item<bool>());
  }
}
