#pragma once
// Strings of variable length in HDF5 files, looked at before HDF5 reads them.

#include <hdf5.h>
#include <memsieve/detail/hdf5_handle.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace memsieve::diffusion {

/// What a file has in the place of such a string: 4 bytes for its length, and where in the file it lies ("HDF5 File
/// Format Specification", III.E). HDF5 makes and clears as much room as the length claims before it looks for the
/// string, up to 4 GiB. So the claim is compared with the file's size first.
class Hdf5TextReference {
 public:
  /// Reads one element of the object as an HDF5 type into memory; whether that went well.
  using Read = std::function<bool(hid_t type, void* out)>;

  Hdf5TextReference() = default;
  /// Of a dataset or an attribute whose type is a string of variable length.
  explicit Hdf5TextReference(hid_t object);

  /// Bytes of one such reference in the file.
  size_t bytes() const { return bytes_; }
  /// DataError, beginning with `what`, if it cannot be read, or if the string would be longer than the file.
  void check(const Read& read, const std::string& what) const;

 private:
  detail::Hdf5Handle type_;
  size_t bytes_ = 0;
  hsize_t file_bytes_ = 0;
};

}  // namespace memsieve::diffusion
