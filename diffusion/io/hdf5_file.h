#pragma once
// The little of HDF5 that the trainer needs, with handles that close themselves and errors in one line.

#include <ATen/core/Tensor.h>
#include <diffusion/io/file_watch.h>
#include <diffusion/io/hdf5_chunks.h>
#include <diffusion/io/hdf5_text.h>
#include <hdf5.h>
#include <memsieve/detail/hdf5_handle.h>

#include <cstdint>
#include <memory>
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
  /// Rows first .. first + count - 1, which must lie in range.
  at::Tensor read_range(int64_t first, int64_t count) const;

  /// Scalar or one-dimensional numeric attribute as float64. DataError if missing or not of `count` numbers.
  std::vector<double> attribute(const std::string& name, int64_t count) const;
  /// A single number, or `otherwise` if there is no such attribute.
  double attribute_or(const std::string& name, double otherwise) const;

 private:
  friend class Hdf5File;
  void read_run(int64_t first, int64_t rows, void* out) const;
  Hdf5Handle id_, memory_type_;
  std::unique_ptr<Hdf5Chunks> chunks_;
  std::vector<int64_t> shape_;
  at::ScalarType dtype_ = at::kFloat;
  std::string where_;
};

/// Texts, one for each row, read on demand: bytes and where each text begins in them, or a one-dimensional dataset of
/// variable-length strings.
class Hdf5Strings {
 public:
  int64_t size() const { return size_; }
  /// In the order given; ids must lie in range.
  std::vector<std::string> read_rows(const std::vector<int64_t>& ids) const;

 private:
  friend class Hdf5File;
  std::string read_row(int64_t id) const;
  std::string read_variable_row(int64_t id) const;
  /// [total] uint8 and [size_ + 1] int64; without rows where the texts are variable-length strings
  Hdf5Array bytes_, offsets_;
  Hdf5Handle id_;
  Hdf5TextReader reader_;
  std::unique_ptr<Hdf5Chunks> chunks_;
  int64_t size_ = 0;
  std::string where_;
};

/// What a dataset may lack.
enum class Written { all, all_or_nothing };

/// A file opened read-only.
class Hdf5File {
 public:
  /// DataError: missing, no regular file, not HDF5, truncated.
  explicit Hdf5File(const std::string& path);

  const std::string& path() const { return watch_.path(); }
  /// DataError if the file is no longer what it was when it was opened (FileWatch): HDF5 reads zeros past the end of a
  /// file that has shrunk. To be called after reading, before what was read is used.
  void require_unchanged() const { watch_.require_unchanged(descriptor_); }
  bool has(const std::string& name) const;
  /// Opens a dataset. DataError if it is missing, not wholly in this file (hdf5_open.h), has another rank than `rank`,
  /// a dtype not among `dtypes`, no rows, or more of them than the file can hold; with Written::all_or_nothing it may
  /// never have been written, which reads as zeros. dtypes that are understood: uint8, int64, float16, float32.
  Hdf5Array array(const std::string& name, int64_t rank, const std::vector<at::ScalarType>& dtypes,
                  Written written = Written::all) const;
  /// Opens the texts `name`_bytes and `name`_offsets, or else the dataset of strings `name`. DataError if there are
  /// both or neither, or if they are of another kind.
  Hdf5Strings strings(const std::string& name) const;
  /// Attributes of the root group. DataError if missing, of another type or of more than one value.
  std::string root_text(const std::string& name) const;
  int64_t root_integer(const std::string& name) const;

 private:
  Hdf5Array open_array(const std::string& name, const std::vector<at::ScalarType>& dtypes, Written written) const;
  FileWatch watch_;
  int descriptor_ = -1;
  Hdf5Handle id_;
};

}  // namespace memsieve::diffusion
