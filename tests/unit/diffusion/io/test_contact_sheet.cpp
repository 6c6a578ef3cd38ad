// Contact sheets and sample files.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <png.h>
#include <diffusion/io/contact_sheet.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>

namespace of_test_contact_sheet {

using namespace memsieve::diffusion;
using namespace memsieve::testing;

namespace {

// [H, W, 3] uint8 of a PNG file.
at::Tensor read_png(const std::string& path) {
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  REQUIRE(png_image_begin_read_from_file(&png, path.c_str()));
  png.format = PNG_FORMAT_RGB;
  auto pixels = at::empty({png.height, png.width, 3}, at::kByte);
  REQUIRE(png_image_finish_read(&png, nullptr, pixels.data_ptr(), 0, nullptr));
  return pixels;
}

at::Tensor pictures() {
  return at::arange(2 * 3 * 3 * 4 * 5, at::kLong).remainder(251).to(at::kByte).view({2, 3, 3, 4, 5});
}

}  // namespace

TEST_CASE("a contact sheet shows each picture in its place") {
  const TemporaryFolder folder;
  write_contact_sheet(folder.file("sheet.png"), pictures(), {2, 1});
  const auto sheet = read_png(folder.file("sheet.png"));
  REQUIRE(sheet.sizes() == at::IntArrayRef({2 * 6 + 2, 3 * 7 + 2, 3}));
  for (int64_t r = 0; r < 2; ++r)
    for (int64_t c = 0; c < 3; ++c)
      REQUIRE(at::equal(sheet.narrow(0, 2 + 6 * r, 4).narrow(1, 2 + 7 * c, 5), pictures()[r][c].permute({1, 2, 0})));
  REQUIRE(sheet.narrow(0, 0, 2).eq(255).all().item<bool>());
  REQUIRE(sheet.narrow(1, 7, 2).eq(255).all().item<bool>());
  REQUIRE_FALSE(std::filesystem::exists(folder.file("sheet.png.tmp")));
}

TEST_CASE("zoom repeats pixels") {
  const TemporaryFolder folder;
  write_contact_sheet(folder.file("sheet.png"), pictures(), {0, 3});
  const auto sheet = read_png(folder.file("sheet.png"));
  REQUIRE(sheet.sizes() == at::IntArrayRef({24, 45, 3}));
  REQUIRE(at::equal(sheet.slice(0, 1, 24, 3).slice(1, 2, 45, 3).narrow(0, 4, 4).narrow(1, 5, 5),
                    pictures()[1][1].permute({1, 2, 0})));
}

TEST_CASE("a sheet that would be too large loses its zoom, then halves its pictures") {
  const TemporaryFolder folder;
  const auto images = at::arange(2 * 3 * 3 * 8 * 12, at::kLong).remainder(251).to(at::kByte).view({2, 3, 3, 8, 12});
  const auto size = [&](int64_t zoom, int64_t most) {
    write_contact_sheet(folder.file("sheet.png"), images, {.margin = 2, .zoom = zoom, .most_pixels = most});
    return read_png(folder.file("sheet.png")).sizes().vec();
  };
  CHECK(size(2, 80) == std::vector<int64_t>{2 * 18 + 2, 3 * 26 + 2, 3});
  CHECK(size(2, 79) == std::vector<int64_t>{2 * 10 + 2, 3 * 14 + 2, 3});
  CHECK(size(1, 43) == std::vector<int64_t>{2 * 6 + 2, 3 * 8 + 2, 3});
  const auto sheet = read_png(folder.file("sheet.png"));
  const auto means = images[1][2].to(at::kFloat).view({3, 4, 2, 6, 2}).mean({2, 4}).round().to(at::kByte);
  CHECK(at::equal(sheet.narrow(0, 8, 4).narrow(1, 18, 6), means.permute({1, 2, 0})));
  // Margins alone are larger: what cannot be halved further is written.
  CHECK(size(1, 1) == std::vector<int64_t>{2 * 3 + 2, 3 * 3 + 2, 3});
}

TEST_CASE("a sheet of many large pictures stays within what PNG can hold") {
  const TemporaryFolder folder;
  // 40 of 2048 in a row, without their memory.
  const auto images = at::full({1, 1, 3, 16, 1}, 7, at::kByte).expand({1, 40, 3, 16, 2048});
  write_contact_sheet(folder.file("sheet.png"), images, {.margin = 2, .zoom = 2});
  const auto sheet = read_png(folder.file("sheet.png"));
  CHECK(sheet.size(1) == 40 * (2048 / 16 + 2) + 2);
  CHECK(sheet.size(0) == 1 + 4);
}

TEST_CASE("sample files hold /images") {
  const TemporaryFolder folder;
  write_samples(folder.file("s.h5"), pictures());
  const auto array = Hdf5File(folder.file("s.h5")).array("/images", 5, {at::kByte});
  REQUIRE(at::equal(array.read(), pictures()));
}

TEST_CASE("what cannot be written is said") {
  const TemporaryFolder folder;
  REQUIRE_THROWS_AS(write_contact_sheet(folder.file("x.png"), pictures()[0]), memsieve::DataError);
  REQUIRE_THROWS_AS(write_contact_sheet(folder.file("x.png"), pictures().to(at::kFloat)), memsieve::DataError);
  REQUIRE_THROWS_AS(write_contact_sheet(folder.file("x.png"), pictures(), {2, 0}), memsieve::DataError);
  for (const auto write : {+[](const std::string& p) { write_contact_sheet(p, pictures()); },
                           +[](const std::string& p) { write_samples(p, pictures()); }})
    REQUIRE_THROWS_WITH(write(folder.file("no/such/folder")),
                        Catch::Contains("cannot be written") && !Catch::Contains("\n"));
}

}  // namespace of_test_contact_sheet
