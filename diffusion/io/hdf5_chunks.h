#pragma once
// Chunks of an HDF5 dataset, looked at before HDF5 inflates them.

#include <hdf5.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// HDF5 inflates as much as the bytes of a chunk make, whatever the shape needs, and reads past the end of a chunk that
/// turns out short. So each chunk's size is compared with its shape before it is first read; a deflated one is inflated
/// for that once, 64 KiB at a time. Safe from several threads.
class Hdf5Chunks {
 public:
  /// `element`: bytes of one value in the file. A dataset without chunks or without filters has nothing to look
  /// at: open_hdf5_dataset() has HDF5 read its rows straight from the file.
  Hdf5Chunks(hid_t dataset, size_t element);
  Hdf5Chunks(const Hdf5Chunks&) = delete;
  Hdf5Chunks& operator=(const Hdf5Chunks&) = delete;

  /// DataError, beginning with `where`, if a chunk that has values of rows first .. first + rows - 1 of `dataset`,
  /// which was given above, holds more or less than its shape needs. Chunks that were never written pass.
  void check(hid_t dataset, int64_t first, int64_t rows, const std::string& where);

 private:
  bool fits(hid_t dataset, const std::vector<hsize_t>& place) const;
  bool is_cut_off(const std::vector<hsize_t>& place) const;

  std::vector<hsize_t> shape_, chunk_;
  std::vector<H5Z_filter_t> filters_;
  uint64_t bytes_ = 0;
  /// chunks at the edge of the dataset are stored without filters
  bool whole_only_ = false;
  std::mutex mutex_;
  /// by place along the first dimension
  std::vector<bool> seen_;
};

}  // namespace memsieve::diffusion
