#include <diffusion/io/hdf5_text.h>
#include <memsieve/error.h>

#include <mutex>
#include <vector>

namespace memsieve::diffusion {

using detail::Hdf5Handle;

namespace {

constexpr size_t kLengthBytes = 4, kIndexBytes = 4;

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

}  // namespace

Hdf5TextReference::Hdf5TextReference(hid_t object) {
  detail::silence_hdf5();
  let_references_be_read();
  const Hdf5Handle file(H5Iget_file_id(object), H5Fclose), created(H5Fget_create_plist(file.get()), H5Pclose);
  size_t address = 0, length = 0;
  H5Pget_sizes(created.get(), &address, &length);
  bytes_ = kLengthBytes + address + kIndexBytes;
  type_ = Hdf5Handle(H5Tcreate(H5T_OPAQUE, bytes_), H5Tclose);
  H5Fget_filesize(file.get(), &file_bytes_);
}

void Hdf5TextReference::check(const Read& read, const std::string& what) const {
  std::vector<unsigned char> reference(bytes_);
  if (!read(type_.get(), reference.data()))
    throw DataError(what + " cannot be read; the file is damaged, make it anew");
  uint32_t length = 0;
  for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | reference[i];
  if (length > file_bytes_)
    throw DataError(what + " would be a text of " + std::to_string(length) + " bytes in a file of " +
                    std::to_string(file_bytes_) + "; the file is damaged, make it anew");
}

}  // namespace memsieve::diffusion
