#include <diffusion/io/hdf5_text.h>
#include <memsieve/error.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <string_view>

namespace memsieve::diffusion {

using detail::Hdf5Handle;

namespace {

// A conversion for H5Tregister: a reference, read as so many opaque bytes, is what it is in the file.
herr_t keep_reference(hid_t from, hid_t to, H5T_cdata_t* data, size_t, size_t, size_t, void*, void*, hid_t) {
  if (data->command != H5T_CONV_INIT) return 0;
  data->need_bkg = H5T_BKG_NO;
  return H5Tis_variable_str(from) > 0 && H5Tget_size(from) == H5Tget_size(to) ? 0 : -1;
}

void let_references_be_read() {
  static std::once_flag once;
  std::call_once(once, [] {
    const Hdf5Handle text(H5Tcopy(H5T_C_S1), H5Tclose), opaque(H5Tcreate(H5T_OPAQUE, 1), H5Tclose);
    H5Tset_size(text.get(), H5T_VARIABLE);
    H5Tregister(H5T_PERS_SOFT, "memsieve text reference", text.get(), opaque.get(), keep_reference);
  });
}

uint64_t number(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

constexpr uint64_t aligned(uint64_t bytes) {
  return (bytes + 7) / 8 * 8;
}

// Bytes before what a collection, or an object in it, holds; `length`: bytes of a length.
constexpr uint64_t header_bytes(size_t length) {
  return aligned(8 + length);
}

bool read_at(int descriptor, uint64_t place, std::string& bytes) {
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t got = ::pread(descriptor, bytes.data() + done, bytes.size() - done, static_cast<off_t>(place + done));
    if (got <= 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

// Object `index` of a collection.
std::string_view object(std::string_view collection, uint64_t index, size_t length) {
  const uint64_t header = header_bytes(length);
  for (uint64_t at = header; at + header <= collection.size();) {
    const uint64_t found = number(collection.substr(at, 2)), bytes = number(collection.substr(at + 8, length));
    if (found == 0) break;  // what is left is free
    at += header;
    if (bytes > collection.size() - at) break;
    if (found == index) return collection.substr(at, bytes);
    at += aligned(bytes);
  }
  return {};
}

}  // namespace

Hdf5TextReader::Hdf5TextReader(hid_t object) : file_(H5Iget_file_id(object), H5Fclose) {
  detail::silence_hdf5();
  let_references_be_read();
  const Hdf5Handle created(H5Fget_create_plist(file_.get()), H5Pclose);
  H5Pget_sizes(created.get(), &address_, &length_);
  H5Pget_userblock(created.get(), &base_);
  type_ = Hdf5Handle(H5Tcreate(H5T_OPAQUE, bytes()), H5Tclose);
  void* handle = nullptr;
  struct ::stat file {};
  if (H5Fget_vfd_handle(file_.get(), H5P_DEFAULT, &handle) < 0 || handle == nullptr) return;
  descriptor_ = *static_cast<const int*>(handle);
  if (::fstat(descriptor_, &file) == 0) file_bytes_ = static_cast<uint64_t>(file.st_size);
}

// The bytes of the collection at an address, or "" if there is none.
std::string Hdf5TextReader::collection(uint64_t address) const {
  const uint64_t there = file_bytes_ - std::min<uint64_t>(base_, file_bytes_), header = header_bytes(length_);
  if (length_ > 8 || address > there || header > there - address) return {};
  std::string bytes(header, '\0');
  if (!read_at(descriptor_, base_ + address, bytes) || bytes.compare(0, 4, "GCOL") != 0 || bytes[4] != 1) return {};
  const uint64_t size = number(std::string_view(bytes).substr(8, length_));
  if (size < header || size > there - address) return {};
  bytes.resize(size);
  return read_at(descriptor_, base_ + address, bytes) ? bytes : std::string();
}

std::string Hdf5TextReader::read(const Read& reference, const std::string& what) const {
  std::string said(bytes(), '\0');
  if (!reference(type_.get(), said.data()))
    throw DataError(what + " cannot be read; the file is damaged, make it anew");
  const std::string_view view(said);
  const uint64_t size = number(view.substr(0, kLength)), address = number(view.substr(kLength, address_));
  if (address == 0) return {};
  const std::string heap = collection(address);
  const std::string_view text = object(heap, number(view.substr(kLength + address_)), length_);
  if (text.size() != size)
    throw DataError(what + " is a text of " + std::to_string(size) +
                    " bytes that the file does not hold; it is damaged, make it anew");
  return std::string(text.substr(0, text.find('\0')));
}

}  // namespace memsieve::diffusion
