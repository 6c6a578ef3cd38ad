#include <diffusion/io/hdf5_open.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>

#include <algorithm>
#include <limits>
#include <set>

namespace memsieve::diffusion {

using detail::Hdf5Handle;
using detail::silence_hdf5;

namespace {

// HDF5 keeps the chunks last read, by default 1 MiB of them, and none that is larger: rows of one large chunk would
// each inflate it anew. So room for one chunk, unless it is so large that whoever wrote it never meant to read rows.
// Without filters there is no room at all: then it reads rows straight from the file, where it would otherwise read
// past the end of a chunk that is shorter in the file than its shape needs.
constexpr uint64_t kSmallChunk = uint64_t{1} << 20, kHugeChunk = uint64_t{1} << 26;
constexpr int64_t kMostRowBytes = int64_t{1} << 30;
// What deflate makes of zeros: no byte of a file can stand for more.
constexpr int64_t kBestCompression = 1032;

void require_known_filters(const Hdf5Handle& created, const std::string& where) {
  std::set<H5Z_filter_t> found;
  for (const H5Z_filter_t filter : hdf5_filters(created.get())) {
    const bool known = filter == H5Z_FILTER_DEFLATE || filter == H5Z_FILTER_SHUFFLE || filter == H5Z_FILTER_FLETCHER32;
    if (known && found.insert(filter).second) continue;
    throw DataError(where + ": is stored with HDF5's filter " + std::to_string(filter) + (known ? " twice" : "") +
                    "; write it with deflate (gzip), shuffle and fletcher32, each once at most");
  }
}

// Sets `target` to the file that a link leads to, and does not follow it.
herr_t refuse_link(const char*, const char*, const char* file, const char* object, unsigned*, hid_t, void* target) {
  static_cast<std::string*>(target)->append(file).append(":").append(object);
  return -1;
}

uint64_t product(const std::vector<hsize_t>& sizes, uint64_t bytes) {
  for (const hsize_t n : sizes) {
    if (n > 0 && bytes > std::numeric_limits<uint64_t>::max() / n) return std::numeric_limits<uint64_t>::max();
    bytes *= n;
  }
  return bytes;
}

// The bytes of one chunk, or 0 for a dataset without chunks.
uint64_t chunk_bytes(hid_t dataset, const Hdf5Handle& created, const std::string& where) {
  if (H5Pget_layout(created.get()) != H5D_CHUNKED) return 0;
  std::vector<hsize_t> chunk(H5S_MAX_RANK), needed;
  chunk.resize(static_cast<size_t>(std::max(H5Pget_chunk(created.get(), H5S_MAX_RANK, chunk.data()), 0)));
  const auto shape = hdf5_shape(dataset);
  if (chunk.size() != shape.size()) throw DataError(where + ": has chunks of another rank; the file is damaged");
  for (size_t i = 0; i < chunk.size(); ++i) needed.push_back(std::min(chunk[i], static_cast<hsize_t>(shape[i])));
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose);
  const size_t element = H5Tget_size(type.get());
  const uint64_t bytes = product(chunk, element);
  if (bytes > kSmallChunk && bytes / 2 > product(needed, element))
    throw DataError(where + ": its chunks " + hdf5_shape_text({chunk.begin(), chunk.end()}) +
                    " are far larger than itself, " + hdf5_shape_text(shape) + "; write it with chunks of one row");
  return bytes;
}

}  // namespace

Hdf5Handle hdf5_half_type() {
  Hdf5Handle type(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
  H5Tset_fields(type.get(), 15, 10, 5, 0, 10);  // IEEE 754 binary16: sign, exponent, mantissa
  H5Tset_size(type.get(), 2);
  H5Tset_ebias(type.get(), 15);
  return type;
}

std::vector<H5Z_filter_t> hdf5_filters(hid_t created) {
  std::vector<H5Z_filter_t> filters;
  for (int i = 0; i < H5Pget_nfilters(created); ++i) {
    unsigned flags = 0, about = 0;
    size_t values = 0;
    filters.push_back(H5Pget_filter2(created, static_cast<unsigned>(i), &flags, &values, nullptr, 0, nullptr, &about));
  }
  return filters;
}

std::vector<int64_t> hdf5_shape(hid_t dataset) {
  const Hdf5Handle space(H5Dget_space(dataset), H5Sclose);
  const int rank = std::max(H5Sget_simple_extent_ndims(space.get()), 0);
  std::vector<hsize_t> dims(static_cast<size_t>(rank));
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

std::string hdf5_shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Hdf5Handle open_hdf5(const std::string& path, int& descriptor) {
  silence_hdf5();
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fapl_sec2(access.get());
  if (H5Fis_hdf5(path.c_str()) <= 0) throw DataError(path + ": is not an HDF5 file (or cannot be read)");
  Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!file) throw DataError(path + ": HDF5 cannot open it; it is truncated, damaged or being written");
  void* handle = nullptr;
  if (H5Fget_vfd_handle(file.get(), H5P_DEFAULT, &handle) < 0 || handle == nullptr)
    throw DataError(path + ": HDF5 does not say how it is open");
  descriptor = *static_cast<const int*>(handle);
  return file;
}

Hdf5Handle open_hdf5_dataset(hid_t file, const std::string& name, const std::string& where) {
  silence_hdf5();
  if (H5Lexists(file, name.c_str(), H5P_DEFAULT) <= 0) throw DataError(where + ": no such dataset");
  std::string elsewhere;
  const Hdf5Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  H5Pset_elink_cb(access.get(), refuse_link, &elsewhere);
  Hdf5Handle plain(H5Dopen2(file, name.c_str(), access.get()), H5Dclose);
  if (!elsewhere.empty())
    throw DataError(where + ": is an external link to " + detail::printable(elsewhere) +
                    "; copy the dataset into the file");
  if (!plain) throw DataError(where + ": is not a dataset");
  const Hdf5Handle created(H5Dget_create_plist(plain.get()), H5Pclose);
  if (H5Pget_layout(created.get()) == H5D_VIRTUAL)
    throw DataError(where + ": is a virtual dataset, whose rows lie in other files; copy them into the file");
  if (H5Pget_external_count(created.get()) != 0)
    throw DataError(where + ": has external storage, so its rows lie in other files; copy them into the file");
  require_known_filters(created, where);
  const uint64_t bytes = chunk_bytes(plain.get(), created, where);
  const bool filtered = H5Pget_nfilters(created.get()) > 0;
  if (bytes == 0 || (filtered && (bytes <= kSmallChunk || bytes > kHugeChunk))) return plain;
  H5Pset_chunk_cache(access.get(), H5D_CHUNK_CACHE_NSLOTS_DEFAULT, filtered ? bytes : 0, H5D_CHUNK_CACHE_W0_DEFAULT);
  plain = {};  // an open dataset keeps the cache that it was opened with first
  return {H5Dopen2(file, name.c_str(), access.get()), H5Dclose};
}

void require_hdf5_size(hid_t file, hid_t dataset, const std::vector<int64_t>& shape, bool or_nothing,
                       const std::string& where) {
  const auto refuse = [&](const std::string& why) {
    throw DataError(where + ": shape " + hdf5_shape_text(shape) + why);
  };
  const Hdf5Handle type(H5Dget_type(dataset), H5Tclose), created(H5Dget_create_plist(dataset), H5Pclose);
  auto bytes = static_cast<int64_t>(H5Tget_size(type.get()));
  // From the last dimension on, so that a row comes before all rows.
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] < 0 || (bytes > 0 && shape[i] > std::numeric_limits<int64_t>::max() / bytes)) refuse(" is too large");
    bytes *= shape[i];
    if (i == 1 && bytes > kMostRowBytes) refuse(" has rows of more than 1 GiB");
  }
  hsize_t there = 0;
  H5Fget_filesize(file, &there);
  const auto filters = hdf5_filters(created.get());
  const bool deflated = std::find(filters.begin(), filters.end(), H5Z_FILTER_DEFLATE) != filters.end();
  const auto most = static_cast<int64_t>(there) * (deflated ? kBestCompression : 1);
  if (bytes <= most || (or_nothing && H5Dget_storage_size(dataset) == 0)) return;
  refuse(" is more than a file of " + std::to_string(there) + " bytes can hold; the file is damaged, make it anew");
}

}  // namespace memsieve::diffusion
