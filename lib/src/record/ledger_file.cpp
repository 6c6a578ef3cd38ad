#include "record/ledger_file.h"

#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

namespace memsieve {

namespace fs = std::filesystem;
using detail::Hdf5Handle;

namespace {

constexpr hsize_t kChunk = 4096;

void check(herr_t status, const std::string& what) {
  if (status < 0) throw DataError(what);
}

Hdf5Handle must(hid_t id, Hdf5Handle::Close close, const std::string& what) {
  Hdf5Handle handle(id, close);
  if (!handle) throw DataError(what);
  return handle;
}

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

Hdf5Handle row_type(const std::vector<std::string>& channels, size_t& row_size) {
  const auto list = columns(channels, row_size);
  Hdf5Handle type = must(H5Tcreate(H5T_COMPOUND, row_size), H5Tclose, "HDF5: no compound type");
  for (const auto& column : list) H5Tinsert(type.get(), column.name.c_str(), column.offset, column.type);
  return type;
}

template <typename T>
char* put(char* at, T value) {
  std::memcpy(at, &value, sizeof value);
  return at + sizeof value;
}

void write_attribute(const Hdf5Handle& object, const char* name, const Hdf5Handle& type, const Hdf5Handle& space,
                     const void* value) {
  const Hdf5Handle attribute = must(H5Acreate2(object.get(), name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                    H5Aclose, "HDF5: no attribute");
  check(H5Awrite(attribute.get(), type.get(), value), std::string("HDF5: attribute ") + name + " cannot be written");
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

constexpr const char* kGaps = "gaps";

void write_gaps(const Hdf5Handle& file, const std::vector<LedgerGap>& gaps) {
  if (H5Aexists(file.get(), kGaps) > 0) check(H5Adelete(file.get(), kGaps), "HDF5: attribute gaps cannot be changed");
  if (gaps.empty()) return;
  const hsize_t shape[] = {gaps.size(), 2};
  const Hdf5Handle type(H5Tcopy(H5T_NATIVE_INT64), H5Tclose), space(H5Screate_simple(2, shape, nullptr), H5Sclose);
  static_assert(sizeof(LedgerGap) == 2 * sizeof(int64_t));
  write_attribute(file, kGaps, type, space, gaps.data());
}

std::vector<LedgerGap> read_gaps(const Hdf5Handle& file) {
  if (H5Aexists(file.get(), kGaps) <= 0) return {};
  const Hdf5Handle attribute(H5Aopen(file.get(), kGaps, H5P_DEFAULT), H5Aclose);
  const Hdf5Handle space(H5Aget_space(attribute.get()), H5Sclose);
  std::vector<LedgerGap> gaps(
      static_cast<size_t>(std::max<hssize_t>(0, H5Sget_simple_extent_npoints(space.get()) / 2)));
  check(H5Aread(attribute.get(), H5T_NATIVE_INT64, gaps.data()), "its attribute gaps cannot be read");
  return gaps;
}

/// Notes that the file lacks its rows from `from` to `to`, and what was missing among them already.
void lose(std::vector<LedgerGap>& gaps, int64_t from, int64_t to) {
  int64_t lost = to - from;
  for (; !gaps.empty() && gaps.back().before >= from; gaps.pop_back()) lost += gaps.back().rows;
  if (lost > 0) gaps.push_back({from, lost});
}

Hdf5Handle latest_format() {
  Hdf5Handle access = must(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "HDF5: no access list");
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  return access;
}

void sync_to_disk(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags);
  const bool done = fd >= 0 && ::fsync(fd) == 0;
  if (fd >= 0) ::close(fd);
  if (!done) throw DataError("ledger " + path + ": cannot be synced to disk; is it full?");
}

/// A name that is free: what cannot be read is kept all the same.
std::string set_aside(const std::string& path) {
  std::string aside = path + ".damaged";
  for (int i = 2; fs::exists(aside); ++i) aside = path + ".damaged-" + std::to_string(i);
  std::error_code error;
  fs::rename(path, aside, error);
  if (error) throw DataError("ledger " + path + ": cannot be read, nor renamed: " + error.message());
  return aside;
}

std::string rows_are_gone(int64_t rows) {
  return "a new one begins; the " + std::to_string(rows) + " rows before it are gone";
}

}  // namespace

int64_t end_of_rows(std::vector<LedgerGap>& gaps, int64_t run_rows) {
  size_t kept = 0;
  for (; kept < gaps.size() && run_rows > gaps[kept].before; ++kept) {
    gaps[kept].rows = std::min(gaps[kept].rows, run_rows - gaps[kept].before);
    run_rows -= gaps[kept].rows;
  }
  gaps.resize(kept);
  return run_rows;
}

std::string LedgerHeader::channel_names() const {
  std::string names;
  for (const auto& name : channels) names += (names.empty() ? "" : ",") + name;
  return names;
}

void LedgerFile::make(const LedgerHeader& header, const std::vector<LedgerGap>& gaps) {
  file_ = must(H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, latest_format().get()), H5Fclose,
               named() + "cannot be created; check that its folder exists and is writable");
  type_ = row_type(header.channels, row_size_);
  const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk = kChunk;
  const Hdf5Handle space = must(H5Screate_simple(1, &none, &unlimited), H5Sclose, "HDF5: no space");
  const Hdf5Handle layout = must(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "HDF5: no creation list");
  H5Pset_chunk(layout.get(), 1, &chunk);
  H5Pset_shuffle(layout.get());
  H5Pset_deflate(layout.get(), 4);
  visits_ = must(H5Dcreate2(file_.get(), "visits", type_.get(), space.get(), H5P_DEFAULT, layout.get(), H5P_DEFAULT),
                 H5Dclose, "HDF5: no data set");
  write_text(file_, "format", "memsieve-ledger");
  write_int(file_, "version", 1);
  write_text(file_, "run_id", header.run_id);
  write_text(file_, "filters", header.channel_names());
  write_text(file_, "configuration", header.configuration);
  write_gaps(file_, gaps);
  start();
  const auto folder = fs::absolute(path_).parent_path();
  sync_to_disk(folder.string(), O_RDONLY | O_DIRECTORY);
}

void LedgerFile::start() {
  check(H5Fstart_swmr_write(file_.get()), named() + "cannot enter single-writer mode");
  flush();
  sync();
}

LedgerFile LedgerFile::create(const std::string& path, const LedgerHeader& header) {
  if (fs::exists(path)) throw DataError("ledger " + path + ": exists already; move it away or resume its run");
  LedgerFile file(path, header.channels.size());
  file.make(header, {});
  return file;
}

LedgerFile LedgerFile::resume(const std::string& path, const LedgerHeader& header, int64_t run_rows,
                              std::string& note) {
  if (fs::exists(path)) {
    try {
      LedgerFile file(path, header.channels.size());
      file.open(header, run_rows, note);
      return file;
    } catch (const DataError& error) {
      note = std::string(error.what()) + ". It is now " + set_aside(path) + ", and " + rows_are_gone(run_rows);
    }
  } else if (run_rows > 0) {
    note = "ledger " + path + ": is missing, but the checkpoint continues it; " + rows_are_gone(run_rows);
  }
  std::vector<LedgerGap> gaps;
  lose(gaps, 0, run_rows);
  LedgerFile file(path, header.channels.size());
  file.make(header, gaps);
  return file;
}

void LedgerFile::open(const LedgerHeader& header, int64_t run_rows, std::string& note) {
  detail::require_regular_file<DataError>(path_);
  const std::string damaged = named() + "cannot be read; it is damaged";
  const Hdf5Handle access = latest_format();
  // A run that was killed left the file marked as being written, and perhaps longer or shorter than it says: what
  // h5clear mends, by the same (undocumented) properties.
  const hbool_t yes = 1;
  H5Pset(access.get(), "clear_status_flags", &yes);
  H5Pset(access.get(), "skip_eof_check", &yes);
  file_ = must(H5Fopen(path_.c_str(), H5F_ACC_RDWR, access.get()), H5Fclose, damaged);
  check(H5Fincrement_filesize(file_.get(), 0), damaged);
  visits_ = must(H5Dopen2(file_.get(), "visits", H5P_DEFAULT), H5Dclose, damaged);
  type_ = row_type(header.channels, row_size_);
  const Hdf5Handle stored = must(H5Dget_type(visits_.get()), H5Tclose, damaged);
  if (H5Tequal(stored.get(), type_.get()) <= 0)
    throw DataError(named() + "was written with other filters, or by another version");
  const Hdf5Handle space = must(H5Dget_space(visits_.get()), H5Sclose, damaged);
  const auto there = static_cast<int64_t>(H5Sget_simple_extent_npoints(space.get()));
  auto gaps = read_gaps(file_);
  const int64_t wanted = end_of_rows(gaps, run_rows), found = readable_rows(std::min(there, wanted));
  if (found < wanted) {
    note = named() + "holds " + std::to_string(found) + " rows, but the checkpoint counts on " +
           std::to_string(wanted) + "; it continues after these, and the others are gone";
    lose(gaps, found, wanted);
  }
  cut(found, gaps);
  start();
}

int64_t LedgerFile::readable_rows(int64_t rows) const {
  std::vector<char> row(row_size_);
  const Hdf5Handle space = must(H5Dget_space(visits_.get()), H5Sclose, "HDF5: no space");
  const hsize_t one = 1;
  const Hdf5Handle memory = must(H5Screate_simple(1, &one, nullptr), H5Sclose, "HDF5: no space");
  // The chunk that was written last may not have reached the disk as a whole.
  for (; rows > 0; rows = (rows - 1) / static_cast<int64_t>(kChunk) * static_cast<int64_t>(kChunk)) {
    const auto last = static_cast<hsize_t>(rows - 1);
    H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &last, nullptr, &one, nullptr);
    if (H5Dread(visits_.get(), type_.get(), memory.get(), space.get(), H5P_DEFAULT, row.data()) >= 0) break;
  }
  return rows;
}

void LedgerFile::cut(int64_t rows, const std::vector<LedgerGap>& gaps) {
  rows_ = rows;
  const auto size = static_cast<hsize_t>(rows);
  check(H5Dset_extent(visits_.get(), &size), named() + "cannot be cut to " + std::to_string(rows) + " rows");
  write_gaps(file_, gaps);
  flush();
}

void LedgerFile::write(const std::vector<LedgerRow>& list) {
  std::vector<char> bytes(list.size() * row_size_);
  char* at = bytes.data();
  for (const auto& row : list) {
    at = put(put(put(put(put(at, row.step), row.epoch), row.sample), row.group), row.timestep);
    at = put(put(put(put(at, row.kind), row.captioned), row.flagged), row.weight);
    at = put(put(put(at, row.score), row.threshold), row.alike);
    for (size_t c = 0; c < channels_; ++c) at = put(put(at, row.raw[c]), row.z[c]);
  }
  const hsize_t count = list.size(), from = static_cast<hsize_t>(rows_), total = from + count;
  check(H5Dset_extent(visits_.get(), &total), named() + "cannot grow; is the disk full?");
  const Hdf5Handle target = must(H5Dget_space(visits_.get()), H5Sclose, "HDF5: no space");
  H5Sselect_hyperslab(target.get(), H5S_SELECT_SET, &from, nullptr, &count, nullptr);
  const Hdf5Handle memory = must(H5Screate_simple(1, &count, nullptr), H5Sclose, "HDF5: no space");
  check(H5Dwrite(visits_.get(), type_.get(), memory.get(), target.get(), H5P_DEFAULT, bytes.data()),
        named() + "cannot be written; is the disk full?");
  rows_ += static_cast<int64_t>(count);
  flush();
}

void LedgerFile::flush() const {
  check(H5Fflush(file_.get(), H5F_SCOPE_GLOBAL), named() + "cannot be flushed; is the disk full?");
}

void LedgerFile::sync() const {
  sync_to_disk(path_, O_RDONLY);
}

}  // namespace memsieve
