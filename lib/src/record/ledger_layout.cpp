#include "record/ledger_layout.h"

#include <memsieve/detail/inflate.h>

#include <algorithm>

namespace memsieve::ledger {

namespace {

constexpr const char* kGaps = "gaps";
constexpr int64_t kMostRows = int64_t{1} << 60;

struct Column {
  std::string name;
  hid_t type;
  size_t offset;
};

/// The compound type: fixed columns, then raw_F and z_F of each filter.
std::vector<Column> columns(const std::vector<std::string>& channels, size_t& size) {
  std::vector<Column> list;
  size = 0;
  const auto add = [&](const std::string& name, hid_t type) {
    list.push_back({name, type, size});
    size += H5Tget_size(type);
  };
  add("step", H5T_NATIVE_UINT64);
  add("epoch", H5T_NATIVE_UINT32);
  add("sample", H5T_NATIVE_INT64);
  add("group", H5T_NATIVE_INT64);
  add("timestep", H5T_NATIVE_FLOAT);
  add("kind", H5T_NATIVE_UINT8);
  add("captioned", H5T_NATIVE_UINT8);
  add("flagged", H5T_NATIVE_UINT8);
  add("weight", H5T_NATIVE_FLOAT);
  add("score", H5T_NATIVE_FLOAT);
  add("threshold", H5T_NATIVE_FLOAT);
  add("alike", H5T_NATIVE_FLOAT);
  for (const auto& channel : channels) {
    add("raw_" + channel, H5T_NATIVE_FLOAT);
    add("z_" + channel, H5T_NATIVE_FLOAT);
  }
  return list;
}

void write_attribute(const Hdf5Handle& object, const char* name, const Hdf5Handle& type, const Hdf5Handle& space,
                     const void* value) {
  const Hdf5Handle attribute = must(H5Acreate2(object.get(), name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                    H5Aclose, "HDF5: no attribute");
  check(H5Awrite(attribute.get(), type.get(), value), std::string("HDF5: attribute ") + name + " cannot be written");
}

/// As a ledger has them: in the order of its rows, and none so large that sums overflow.
bool can_be_counted(const std::vector<LedgerGap>& gaps) {
  int64_t last = -1, total = 0;
  for (const auto& [before, rows] : gaps) {
    if (before <= last || before > kMostRows || rows <= 0 || rows > kMostRows - total) return false;
    last = before;
    total += rows;
  }
  return true;
}

}  // namespace

Hdf5Handle row_type(const std::vector<std::string>& channels, size_t& row_size) {
  const auto list = columns(channels, row_size);
  Hdf5Handle type = must(H5Tcreate(H5T_COMPOUND, row_size), H5Tclose, "HDF5: no compound type");
  for (const auto& column : list) H5Tinsert(type.get(), column.name.c_str(), column.offset, column.type);
  return type;
}

Hdf5Handle row_layout() {
  Hdf5Handle layout = must(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "HDF5: no creation list");
  H5Pset_chunk(layout.get(), 1, &kChunk);
  H5Pset_shuffle(layout.get());
  H5Pset_deflate(layout.get(), 4);
  return layout;
}

bool is_laid_out_like_ours(const Hdf5Handle& visits) {
  const Hdf5Handle layout(H5Dget_create_plist(visits.get()), H5Pclose);
  hsize_t chunk = 0;
  unsigned options = 0;
  if (H5Pget_layout(layout.get()) != H5D_CHUNKED || H5Pget_chunk(layout.get(), 1, &chunk) != 1 || chunk != kChunk ||
      H5Pget_chunk_opts(layout.get(), &options) < 0 || options != 0 || H5Pget_nfilters(layout.get()) != 2)
    return false;
  const auto filter = [&](unsigned i) {
    unsigned flags = 0, about = 0;
    size_t none = 0;
    return H5Pget_filter2(layout.get(), i, &flags, &none, nullptr, 0, nullptr, &about);
  };
  return filter(0) == H5Z_FILTER_SHUFFLE && filter(1) == H5Z_FILTER_DEFLATE;
}

bool chunk_is_whole(const Hdf5Handle& visits, uint64_t row, size_t row_size) {
  const hsize_t place = row / kChunk * kChunk;
  unsigned without = 0;
  haddr_t address = HADDR_UNDEF;
  hsize_t stored = 0;
  if (H5Dget_chunk_info_by_coord(visits.get(), &place, &without, &address, &stored) < 0) return false;
  const uint64_t bytes = kChunk * row_size;
  if (address == HADDR_UNDEF) return true;  // never written: zeros
  if ((without & 2) != 0) return stored == bytes;
  if (stored > compressBound(bytes)) return false;
  std::vector<unsigned char> raw(stored);
  uint32_t mask = 0;
  return H5Dread_chunk(visits.get(), H5P_DEFAULT, &place, &mask, raw.data()) >= 0 &&
         detail::inflates_to(raw, stored, bytes);
}

void write_text(const Hdf5Handle& object, const char* name, const std::string& text) {
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
  H5Tset_size(type.get(), std::max<size_t>(1, text.size()));
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  write_attribute(object, name, type, space, text.empty() ? " " : text.c_str());
}

void write_int(const Hdf5Handle& object, const char* name, int64_t value) {
  const Hdf5Handle type(H5Tcopy(H5T_NATIVE_INT64), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
  write_attribute(object, name, type, space, &value);
}

void write_gaps(const Hdf5Handle& file, const std::vector<LedgerGap>& gaps) {
  if (H5Aexists(file.get(), kGaps) > 0) check(H5Adelete(file.get(), kGaps), "HDF5: attribute gaps cannot be changed");
  if (gaps.empty()) return;
  const hsize_t shape[] = {gaps.size(), 2};
  const Hdf5Handle type(H5Tcopy(H5T_NATIVE_INT64), H5Tclose), space(H5Screate_simple(2, shape, nullptr), H5Sclose);
  static_assert(sizeof(LedgerGap) == 2 * sizeof(int64_t));
  write_attribute(file, kGaps, type, space, gaps.data());
}

std::vector<LedgerGap> read_gaps(const Hdf5Handle& file, const std::string& damaged) {
  if (H5Aexists(file.get(), kGaps) <= 0) return {};
  const Hdf5Handle attribute(H5Aopen(file.get(), kGaps, H5P_DEFAULT), H5Aclose);
  const Hdf5Handle space(H5Aget_space(attribute.get()), H5Sclose);
  const Hdf5Handle type(H5Aget_type(attribute.get()), H5Tclose);
  hsize_t shape[2] = {0, 0};
  const bool sound = H5Tequal(type.get(), H5T_NATIVE_INT64) > 0 && H5Sget_simple_extent_ndims(space.get()) == 2 &&
                     H5Sget_simple_extent_dims(space.get(), shape, nullptr) == 2 && shape[1] == 2 &&
                     H5Aget_storage_size(attribute.get()) == shape[0] * sizeof(LedgerGap);
  if (!sound) throw DataError(damaged + " (its attribute gaps)");
  std::vector<LedgerGap> gaps(shape[0]);
  check(H5Aread(attribute.get(), H5T_NATIVE_INT64, gaps.data()), damaged + " (its attribute gaps)");
  if (!can_be_counted(gaps)) throw DataError(damaged + " (its attribute gaps)");
  return gaps;
}

}  // namespace memsieve::ledger
