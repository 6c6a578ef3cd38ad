#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <png.h>
#include <diffusion/io/hdf5_file.h>
#include <diffusion/io/contact_sheet.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <vector>

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

// [rows, columns, 3, H, W] with H and W divided by `factor`, each pixel the mean of factor x factor.
at::Tensor shrunk(const at::Tensor& images, int64_t factor) {
  std::vector<at::Tensor> pictures;  // one at a time: all of them as float32 may not fit into memory
  for (const at::Tensor& picture : images.flatten(0, 1).unbind())
    pictures.push_back(at::avg_pool2d(picture.to(at::kFloat), {factor, factor}).round().to(at::kByte));
  const at::Tensor all = at::stack(pictures);
  return all.view({images.size(0), images.size(1), 3, all.size(2), all.size(3)});
}

// The pictures as the sheet shows them.
at::Tensor sized(const at::Tensor& images, const ContactSheetOptions& options) {
  const int64_t h = images.size(3), w = images.size(4);
  int64_t zoom = options.zoom, factor = 1;
  const auto too_large = [&] {
    const auto side = [&](int64_t count, int64_t pixels) {
      return count * (pixels * zoom / factor + options.margin) + options.margin;
    };
    return std::max(side(images.size(0), h), side(images.size(1), w)) > options.most_pixels;
  };
  while (zoom > 1 && too_large()) zoom /= 2;
  while (std::min(h, w) >= 2 * factor && too_large()) factor *= 2;
  if (factor > 1) return shrunk(images, factor);
  return zoom > 1 ? images.repeat_interleave(zoom, 3).repeat_interleave(zoom, 4) : images;
}

// [rows, columns, 3, H, W] -> [height, width, 3], white margins.
at::Tensor grid(const at::Tensor& images, const ContactSheetOptions& options) {
  const at::Tensor cells = sized(images.cpu(), options);
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
