#pragma once
// Writes data sets, sound and broken ones, for the tests.

#include <ATen/ATen.h>
#include <diffusion/io/hdf5_file.h>
#include <support/files.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

namespace memsieve::testing {

using namespace diffusion;

class Hdf5Writer {
 public:
  explicit Hdf5Writer(const std::string& path)
      : file_(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose) {}
  explicit Hdf5Writer(Hdf5Handle file) : file_(std::move(file)) {}

  /// For what the functions below cannot write.
  hid_t id() const { return file_.get(); }

  /// `chunk`: rows of one chunk, which is deflated; 0 = contiguous.
  void tensor(const std::string& name, const at::Tensor& values, int64_t chunk = 0) {
    const std::vector<hsize_t> dims(values.sizes().begin(), values.sizes().end());
    const Hdf5Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
    const Hdf5Handle type = type_of(values.scalar_type()), how(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    if (chunk > 0) {
      auto shape = dims;
      shape[0] = static_cast<hsize_t>(chunk);
      H5Pset_chunk(how.get(), static_cast<int>(shape.size()), shape.data());
      H5Pset_deflate(how.get(), 1);
    }
    const Hdf5Handle data(
        H5Dcreate2(file_.get(), name.c_str(), type.get(), space.get(), H5P_DEFAULT, how.get(), H5P_DEFAULT), H5Dclose);
    if (values.numel() > 0)
      H5Dwrite(data.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.contiguous().data_ptr());
  }

  void strings(const std::string& name, const std::vector<std::string>& texts) {
    const hsize_t count = texts.size();
    std::vector<const char*> pointers;
    for (const auto& text : texts) pointers.push_back(text.c_str());
    const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose);
    const Hdf5Handle type = text_type();
    const Hdf5Handle data(
        H5Dcreate2(file_.get(), name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
        H5Dclose);
    H5Dwrite(data.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, pointers.data());
  }

  /// Texts as bytes and offsets.
  void texts(const std::string& name, const std::vector<std::string>& texts) {
    std::string all;
    std::vector<int64_t> offsets{0};
    for (const auto& text : texts) offsets.push_back(static_cast<int64_t>((all += text).size()));
    tensor(name + "_bytes",
           at::tensor(at::ArrayRef<uint8_t>(reinterpret_cast<const uint8_t*>(all.data()), all.size()), at::kByte));
    tensor(name + "_offsets", at::tensor(offsets, at::kLong));
  }

  void attribute(const std::string& object, const std::string& name, const std::vector<double>& values) {
    const hsize_t count = values.size();
    const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose);
    write_attribute(object, name, H5T_NATIVE_DOUBLE, space, values.data());
  }

  void attribute(const std::string& object, const std::string& name, int64_t value) {
    write_attribute(object, name, H5T_NATIVE_INT64, Hdf5Handle(H5Screate(H5S_SCALAR), H5Sclose), &value);
  }

  void attribute(const std::string& object, const std::string& name, const std::string& text) {
    const char* pointer = text.c_str();
    write_attribute(object, name, text_type().get(), Hdf5Handle(H5Screate(H5S_SCALAR), H5Sclose), &pointer);
  }

  void remove_attribute(const std::string& object, const std::string& name) {
    const Hdf5Handle owner(H5Oopen(file_.get(), object.c_str(), H5P_DEFAULT), H5Oclose);
    H5Adelete(owner.get(), name.c_str());
  }

  void remove(const std::string& name) { H5Ldelete(file_.get(), name.c_str(), H5P_DEFAULT); }

  void replace(const std::string& name, const at::Tensor& values) {
    remove(name);
    tensor(name, values);
  }

 private:
  static Hdf5Handle text_type() {
    Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
    H5Tset_size(type.get(), H5T_VARIABLE);
    H5Tset_cset(type.get(), H5T_CSET_UTF8);
    return type;
  }

  static Hdf5Handle type_of(at::ScalarType dtype) {
    if (dtype == at::kHalf) {
      Hdf5Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
      H5Tset_fields(type.get(), 15, 10, 5, 0, 10);
      H5Tset_size(type.get(), 2);
      H5Tset_ebias(type.get(), 15);
      return type;
    }
    const hid_t native = dtype == at::kByte     ? H5T_NATIVE_UINT8
                         : dtype == at::kLong   ? H5T_NATIVE_INT64
                         : dtype == at::kInt    ? H5T_NATIVE_INT32
                         : dtype == at::kDouble ? H5T_NATIVE_DOUBLE
                                                : H5T_NATIVE_FLOAT;
    return {H5Tcopy(native), H5Tclose};
  }

  void write_attribute(const std::string& object, const std::string& name, hid_t type, const Hdf5Handle& space,
                       const void* data) {
    const Hdf5Handle owner(H5Oopen(file_.get(), object.c_str(), H5P_DEFAULT), H5Oclose);
    if (H5Aexists(owner.get(), name.c_str()) > 0) H5Adelete(owner.get(), name.c_str());
    const Hdf5Handle attribute(H5Acreate2(owner.get(), name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
                               H5Aclose);
    H5Awrite(attribute.get(), type, data);
  }

  Hdf5Handle file_;
};

inline at::Tensor some_images(int64_t n) {
  return at::arange(n * 3 * 8 * 8, at::kLong).mul(37).remainder(256).to(at::kByte).view({n, 3, 8, 8});
}
inline at::Tensor some_text(int64_t n) {
  return (at::arange(n * 4 * 6, at::kFloat).view({n, 4, 6}) / 64).to(at::kHalf);
}

/// A sound data set of `n` pictures of 8 x 8 pixels with text [4, 6], left open for the test to break.
inline Hdf5Writer write_pictures(const std::string& path, int64_t n = 6) {
  Hdf5Writer file(path);
  file.attribute("/", "format", std::string("memsieve-dataset"));
  file.attribute("/", "version", int64_t{1});
  file.tensor("/images", some_images(n));
  file.attribute("/images", "mean", std::vector<double>{0.5, 0.4, 0.3});
  file.attribute("/images", "std", std::vector<double>{0.25, 0.3, 0.35});
  file.attribute("/images", "pixel_unshuffle", int64_t{2});
  file.tensor("/text", some_text(n));
  file.tensor("/null_text", at::full({4, 6}, 0.5, at::kHalf));
  std::vector<std::string> captions;
  for (int64_t i = 0; i < n; ++i) captions.push_back("caption " + std::to_string(i) + " \xE2\x9C\x93");
  file.strings("/caption", captions);
  file.tensor("/group_id", at::arange(n, at::kLong).floor_divide(2));
  return file;
}

/// A sound data set of float latents [n, 4, 2, 2].
inline Hdf5Writer write_latents(const std::string& path, int64_t n = 6, at::ScalarType dtype = at::kHalf) {
  Hdf5Writer file = write_pictures(path, n);
  file.remove("/images");
  file.tensor("/latents", (at::arange(n * 16, at::kFloat).view({n, 4, 2, 2}) / 8).to(dtype));
  return file;
}

/// What a VAE's answer is stored as: means and standard deviations, with the factors of SD 3's VAE.
inline Hdf5Writer write_distributions(const std::string& path, int64_t n = 6) {
  Hdf5Writer file = write_latents(path, n);
  file.attribute("/latents", "scaling_factor", std::vector<double>{1.5305});
  file.attribute("/latents", "shift_factor", std::vector<double>{0.0609});
  file.tensor("/latent_std", (at::arange(n * 16, at::kFloat).view({n, 4, 2, 2}) / 512).to(at::kHalf));
  return file;
}

/// The same with what SDXL has besides: pooled text [n, 5] and time_ids.
inline Hdf5Writer write_sdxl(const std::string& path, int64_t n = 6) {
  Hdf5Writer file = write_distributions(path, n);
  file.tensor("/pooled", (at::arange(n * 5, at::kFloat).view({n, 5}) / 16).to(at::kHalf));
  file.tensor("/null_pooled", at::full({5}, 0.25, at::kHalf));
  file.tensor("/time_ids", at::arange(n * 6, at::kFloat).view({n, 6}) * 16);
  return file;
}

}  // namespace memsieve::testing
