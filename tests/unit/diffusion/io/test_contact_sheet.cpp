// Contact sheets and sample files.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <png.h>
#include <diffusion/io/contact_sheet.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>

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
