#pragma once
// The parts that a data set is put together from. Only dataset.cpp needs them.

#include <diffusion/data/dataset.h>
#include <diffusion/io/hdf5_file.h>

namespace memsieve::diffusion {

/// One dataset of the file with a row for each sample, either held in memory or read when asked for.
struct Column {
  Hdf5Array array;
  at::Tensor cache;
  /// negative numbers are refused
  bool positive = false;

  /// False for an optional dataset that the file does not have.
  bool there() const { return !array.shape().empty(); }
  int64_t bytes() const { return there() ? array.bytes() : 0; }
  /// Reads the whole of it. DataError for a row that holds a NaN or Inf.
  void hold();
  /// Rows in the order of `ids` in the stored dtype, checked as by hold(), or undefined if it is not there.
  at::Tensor rows(const std::vector<int64_t>& ids) const;
  /// The same as float32.
  at::Tensor real_rows(const std::vector<int64_t>& ids) const;
  /// The same, taken from `other`, a column of the same shape, where `from_other` [B] bool says so.
  at::Tensor real_rows(const std::vector<int64_t>& ids, const Column& other, const at::Tensor& from_other) const;

 private:
  void check(const at::Tensor& values, const std::vector<int64_t>& ids) const;
};

/// DataError for the first row of `values` [B, ...] that holds a NaN or Inf. `ids` names rows, empty = 0, 1, 2 ...
void check_finite(const at::Tensor& values, const std::string& where, const std::vector<int64_t>& ids);

/// The attributes of /images, and whether its shape goes with them.
Codec read_codec(const Hdf5Array& images);
/// The attributes of /latents.
LatentScale read_latent_scale(const Hdf5Array& latents);

/// "4 x 64 x 64".
std::string shape_text(at::IntArrayRef shape);

}  // namespace memsieve::diffusion
