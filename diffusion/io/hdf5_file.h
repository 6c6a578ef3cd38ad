#pragma once
// The little of HDF5 that the trainer needs, with handles that close themselves and errors in one line.

#include <ATen/core/Tensor.h>
#include <hdf5.h>
#include <memsieve/detail/hdf5_handle.h>

#include <cstdint>
#include <string>
#include <vector>

#ifndef H5_HAVE_THREADSAFE
#error "rows are read on several threads: build with a thread-safe HDF5, as Debian's libhdf5-dev is"
#endif

namespace memsieve::diffusion {

using detail::Hdf5Handle;
using detail::silence_hdf5;

/// One numeric dataset of a file: its shape and type, and its rows on demand.
class Hdf5Array {
 public:
  Hdf5Array() = default;
  const std::vector<int64_t>& shape() const { return shape_; }
  at::ScalarType dtype() const { return dtype_; }
  int64_t bytes() const;
  /// "file.h5: /text", for messages.
  const std::string& where() const { return where_; }

  /// The whole dataset, or rows of its first dimension in the order given (ids must lie in range, and may occur twice),
  /// in the stored dtype. Rows are read in the order of the file, neighbours in one call.
  at::Tensor read() const;
  at::Tensor read_rows(const std::vector<int64_t>& ids) const;

  /// Scalar or one-dimensional numeric attribute as float64. DataError if missing or not of `count` numbers.
  std::vector<double> attribute(const std::string& name, int64_t count) const;
  /// A single number, or `otherwise` if there is no such attribute.
  double attribute_or(const std::string& name, double otherwise) const;

 private:
  friend class Hdf5File;
  void read_run(int64_t first, int64_t rows, void* out) const;
  Hdf5Handle id_, memory_type_;
  std::vector<int64_t> shape_;
  at::ScalarType dtype_ = at::kFloat;
  std::string where_;
};

/// A one-dimensional dataset of variable-length UTF-8 strings, read on demand.
class Hdf5Strings {
 public:
  int64_t size() const { return size_; }
  /// In the order given; ids must lie in range.
  std::vector<std::string> read_rows(const std::vector<int64_t>& ids) const;

 private:
  friend class Hdf5File;
  Hdf5Handle id_, type_;
  int64_t size_ = 0;
  std::string where_;
};

/// A file opened read-only.
class Hdf5File {
 public:
  /// DataError: missing, a folder, not HDF5, truncated.
  explicit Hdf5File(const std::string& path);

  const std::string& path() const { return path_; }
  bool has(const std::string& name) const;
  /// Opens a dataset. DataError if it is missing, has another rank than `rank`, a dtype not among `dtypes`, or no rows.
  /// dtypes that are understood: uint8, int64, float16, float32.
  Hdf5Array array(const std::string& name, int64_t rank, const std::vector<at::ScalarType>& dtypes) const;
  /// Opens a dataset of strings. DataError if it is missing or of another kind.
  Hdf5Strings strings(const std::string& name) const;
  /// Attributes of the root group. DataError if missing or of another type.
  std::string root_text(const std::string& name) const;
  int64_t root_integer(const std::string& name) const;

 private:
  std::string path_;
  Hdf5Handle id_;
};

}  // namespace memsieve::diffusion
