#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <png.h>
#include <diffusion/io/hdf5_file.h>
#include <diffusion/io/contact_sheet.h>

#include <array>
#include <filesystem>

namespace memsieve::diffusion {

namespace {

void check_images(const std::string& path, const at::Tensor& images) {
  if (images.dim() != 5 || images.size(2) != 3 || images.numel() == 0 || images.scalar_type() != at::kByte)
    throw DataError(path + ": pictures must be uint8 [rows, columns, 3, H, W] and not empty");
}

void rename_into_place(const std::string& temporary, const std::string& path) {
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) throw DataError(path + ": cannot be written: " + error.message());
}

// [rows, columns, 3, H, W] -> [height, width, 3], white margins.
at::Tensor grid(const at::Tensor& images, const ContactSheetOptions& options) {
  at::Tensor cells = images.cpu();
  if (options.zoom > 1) cells = cells.repeat_interleave(options.zoom, 3).repeat_interleave(options.zoom, 4);
  const int64_t m = options.margin, rows = cells.size(0), columns = cells.size(1);
  const int64_t h = cells.size(3) + m, w = cells.size(4) + m;
  at::Tensor sheet = at::full({rows * h + m, columns * w + m, 3}, 255, at::kByte);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      sheet.narrow(0, r * h + m, cells.size(3))
          .narrow(1, c * w + m, cells.size(4))
          .copy_(cells[r][c].permute({1, 2, 0}));
  return sheet;
}

}  // namespace

void write_contact_sheet(const std::string& path, const at::Tensor& images, const ContactSheetOptions& options) {
  check_images(path, images);
  if (options.margin < 0 || options.zoom < 1) throw DataError(path + ": margin must be 0 or more and zoom 1 or more");
  const at::Tensor sheet = grid(images, options);
  png_image png{};
  png.version = PNG_IMAGE_VERSION;
  png.height = static_cast<png_uint_32>(sheet.size(0));
  png.width = static_cast<png_uint_32>(sheet.size(1));
  png.format = PNG_FORMAT_RGB;
  const std::string temporary = path + ".tmp";
  if (!png_image_write_to_file(&png, temporary.c_str(), 0, sheet.data_ptr(), 0, nullptr))
    throw DataError(path + ": cannot be written: " + png.message);
  rename_into_place(temporary, path);
}

void write_samples(const std::string& path, const at::Tensor& images) {
  check_images(path, images);
  silence_hdf5();
  const at::Tensor values = images.cpu().contiguous();
  const std::string temporary = path + ".tmp";
  {
    std::array<hsize_t, 5> dims{};
    for (int d = 0; d < 5; ++d) dims[d] = static_cast<hsize_t>(values.size(d));
    const Hdf5Handle file(H5Fcreate(temporary.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose);
    const Hdf5Handle space(H5Screate_simple(5, dims.data(), nullptr), H5Sclose);
    const Hdf5Handle data(
        file ? H5Dcreate2(file.get(), "/images", H5T_STD_U8LE, space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT) : -1,
        H5Dclose);
    if (!data || H5Dwrite(data.get(), H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data_ptr()) < 0 ||
        H5Fflush(file.get(), H5F_SCOPE_GLOBAL) < 0)
      throw DataError(path + ": cannot be written; is there room, and may this user write there?");
  }
  rename_into_place(temporary, path);
}

}  // namespace memsieve::diffusion
