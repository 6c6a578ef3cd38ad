#pragma once
// Strings of variable length in HDF5 files, read without HDF5's own heap.

#include <hdf5.h>
#include <memsieve/detail/hdf5_handle.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace memsieve::diffusion {

/// Reads strings of variable length where they lie: a dataset or an attribute has references, each a length, the
/// address of a collection and a number in it ("HDF5 File Format Specification", III.E: global heap). HDF5 1.10
/// believes all of it: it clears as much memory as a length claims, writes an object past the room for it if that is
/// longer, and reads a collection whose objects have no length for ever.
class Hdf5TextReader {
 public:
  /// Reads one element of the object as an HDF5 type into memory; whether that went well.
  using Read = std::function<bool(hid_t type, void* out)>;

  Hdf5TextReader() = default;
  /// Of a dataset or an attribute whose type is a string of variable length, in a file opened by open_hdf5().
  explicit Hdf5TextReader(hid_t object);

  /// Bytes of one reference in the file.
  size_t bytes() const { return kLength + address_ + kIndex; }
  /// The text that `reference` reads the reference of, to its first NUL, or "" for none. DataError, beginning with
  /// `what`, if it cannot be read or the file does not hold it.
  std::string read(const Read& reference, const std::string& what) const;

 private:
  static constexpr size_t kLength = 4, kIndex = 4;

  std::string collection(uint64_t address) const;
  detail::Hdf5Handle file_, type_;
  /// bytes of an address, and of a length, in the file
  size_t address_ = 0, length_ = 0;
  hsize_t base_ = 0;
  uint64_t file_bytes_ = 0;
  int descriptor_ = -1;
};

}  // namespace memsieve::diffusion
