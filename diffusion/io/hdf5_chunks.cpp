#include <diffusion/io/hdf5_chunks.h>
#include <diffusion/io/hdf5_open.h>
#include <memsieve/detail/inflate.h>
#include <memsieve/error.h>

#include <algorithm>

namespace memsieve::diffusion {

using detail::Hdf5Handle;
using detail::silence_hdf5;

namespace {

constexpr uint64_t kChecksumBytes = 4;
constexpr hsize_t kUnknown = ~hsize_t{0};

// Of a chunk without bytes.
bool was_never_written(hid_t dataset, const std::vector<hsize_t>& place) {
  unsigned without = 0;
  haddr_t address = HADDR_UNDEF;
  hsize_t stored = 0;
  return H5Dget_chunk_info_by_coord(dataset, place.data(), &without, &address, &stored) >= 0 && address == HADDR_UNDEF;
}

}  // namespace

Hdf5Chunks::Hdf5Chunks(hid_t dataset, size_t element) : bytes_(element) {
  silence_hdf5();
  const Hdf5Handle created(H5Dget_create_plist(dataset), H5Pclose);
  if (H5Pget_layout(created.get()) != H5D_CHUNKED) return;
  filters_ = hdf5_filters(created.get());
  if (filters_.empty()) return;
  const auto shape = hdf5_shape(dataset);
  shape_.assign(shape.begin(), shape.end());
  chunk_.resize(shape_.size());
  H5Pget_chunk(created.get(), static_cast<int>(chunk_.size()), chunk_.data());
  for (const hsize_t n : chunk_) bytes_ *= n;  // less than 4 GiB, or HDF5 had not opened it
  unsigned options = 0;
  whole_only_ =
      H5Pget_chunk_opts(created.get(), &options) >= 0 && (options & H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS) != 0;
}

bool Hdf5Chunks::is_cut_off(const std::vector<hsize_t>& place) const {
  for (size_t i = 0; i < place.size(); ++i)
    if (place[i] + chunk_[i] > shape_[i]) return true;
  return false;
}

bool Hdf5Chunks::fits(hid_t dataset, const std::vector<hsize_t>& place) const {
  // Its size alone, which HDF5 finds at once; for all about a chunk it goes through those of all rows.
  hsize_t stored = kUnknown;
  H5Dget_chunk_storage_size(dataset, place.data(), &stored);
  if (stored == 0) return was_never_written(dataset, place);
  if (stored > compressBound(bytes_ + kChecksumBytes) + kChecksumBytes) return false;
  std::vector<unsigned char> raw(stored);
  uint32_t without = 0;
  if (H5Dread_chunk(dataset, H5P_DEFAULT, place.data(), &without, raw.data()) < 0) return false;
  if (whole_only_ && is_cut_off(place)) without = ~0u;
  // In the order of writing: what goes into deflate, and what is put behind what comes out.
  uint64_t inner = bytes_, behind = 0;
  bool deflated = false;
  for (size_t i = 0; i < filters_.size(); ++i) {
    if ((without >> i) & 1) continue;
    if (filters_[i] == H5Z_FILTER_FLETCHER32) (deflated ? behind : inner) += kChecksumBytes;
    deflated |= filters_[i] == H5Z_FILTER_DEFLATE;
  }
  if (!deflated) return stored == inner;
  return stored >= behind && detail::inflates_to(raw, stored - behind, inner);
}

void Hdf5Chunks::check(hid_t dataset, int64_t first, int64_t rows, const std::string& where) {
  if (filters_.empty() || rows <= 0) return;
  const std::lock_guard lock(mutex_);
  // Only now: a header may claim any number of rows, but whoever reads some has counted them.
  seen_.resize((shape_[0] + chunk_[0] - 1) / chunk_[0]);
  const hsize_t last = static_cast<hsize_t>(first + rows - 1) / chunk_[0];
  for (hsize_t band = static_cast<hsize_t>(first) / chunk_[0]; band <= last; ++band) {
    if (seen_[band]) continue;
    std::vector<hsize_t> place(chunk_.size(), 0);
    place[0] = band * chunk_[0];
    for (bool more = true; more;) {
      if (!fits(dataset, place))
        throw DataError(where + ": row " + std::to_string(place[0]) +
                        ": its chunk does not hold what its shape needs; the file is damaged, make it anew");
      more = false;
      for (size_t i = place.size() - 1; i > 0 && !more; --i) {
        place[i] += chunk_[i];
        more = place[i] < shape_[i];
        if (!more) place[i] = 0;
      }
    }
    seen_[band] = true;
  }
}

}  // namespace memsieve::diffusion
