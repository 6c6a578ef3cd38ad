#include "record/ledger.h"

#include <hdf5.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

namespace memsieve {

namespace {

/// An HDF5 handle that closes itself.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what) : id_(id), close_(close) {
    if (id < 0) throw DataError(what);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }  // NOLINT: handles are passed straight to the C API

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

void check(herr_t status, const std::string& what) {
  if (status < 0) throw DataError(what);
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
  for (const auto& channel : channels) {
    add("raw_" + channel, H5T_NATIVE_FLOAT);
    add("z_" + channel, H5T_NATIVE_FLOAT);
  }
  return list;
}

template <typename T>
char* put(char* at, T value) {
  std::memcpy(at, &value, sizeof value);
  return at + sizeof value;
}

void write_text(hid_t object, const char* name, const std::string& text) {
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "HDF5: no string type");
  H5Tset_size(type, std::max<size_t>(1, text.size()));
  H5Tset_cset(type, H5T_CSET_UTF8);
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "HDF5: no space");
  const Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         "HDF5: no attribute");
  H5Awrite(attribute, type, text.empty() ? " " : text.c_str());
}

void write_int(hid_t object, const char* name, int64_t value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose, "HDF5: no space");
  const Handle attribute(H5Acreate2(object, name, H5T_NATIVE_INT64, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose,
                         "HDF5: no attribute");
  H5Awrite(attribute, H5T_NATIVE_INT64, &value);
}

hid_t latest_format() {
  const hid_t list = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(list, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  return list;
}

constexpr hsize_t kChunk = 4096;

/// For the calling thread: our own messages are clearer than the library's stack.
void silence_hdf5() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

}  // namespace

struct Ledger::File {
  std::string path;
  size_t channels, row_size = 0;
  Handle file, type, visits;
  hsize_t rows = 0;

  static Handle make_type(const std::vector<std::string>& channels, size_t& row_size) {
    const auto list = columns(channels, row_size);
    Handle type(H5Tcreate(H5T_COMPOUND, row_size), H5Tclose, "HDF5: no compound type");
    for (const auto& column : list) H5Tinsert(type, column.name.c_str(), column.offset, column.type);
    return type;
  }

  static Handle create_file(const std::string& path) {
    const Handle access(latest_format(), H5Pclose, "HDF5: no access list");
    return Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose,
                  "ledger " + path + ": cannot be created; check that its folder exists and is writable");
  }

  static Handle create_visits(hid_t file, hid_t type) {
    const hsize_t none = 0, unlimited = H5S_UNLIMITED, chunk = kChunk;
    const Handle space(H5Screate_simple(1, &none, &unlimited), H5Sclose, "HDF5: no space");
    const Handle layout(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "HDF5: no creation list");
    H5Pset_chunk(layout, 1, &chunk);
    H5Pset_shuffle(layout);
    H5Pset_deflate(layout, 4);
    return Handle(H5Dcreate2(file, "visits", type, space, H5P_DEFAULT, layout, H5P_DEFAULT), H5Dclose,
                  "HDF5: no data set");
  }

  File(const std::string& path, const LedgerHeader& header)
      : path(path),
        channels(header.channels.size()),
        file(create_file(path)),
        type(make_type(header.channels, row_size)),
        visits(create_visits(file, type)) {
    write_text(file, "format", "memsieve-ledger");
    write_int(file, "version", 1);
    write_text(file, "run_id", header.run_id);
    write_text(file, "filters", header.channel_names());
    write_text(file, "configuration", header.configuration);
  }

  void start_swmr() { check(H5Fstart_swmr_write(file), "ledger " + path + ": cannot enter single-writer mode"); }

  void write(const char* bytes, hsize_t count) {
    const hsize_t total = rows + count, from = rows;
    check(H5Dset_extent(visits, &total), "ledger " + path + ": cannot grow; is the disk full?");
    const Handle target(H5Dget_space(visits), H5Sclose, "HDF5: no space");
    H5Sselect_hyperslab(target, H5S_SELECT_SET, &from, nullptr, &count, nullptr);
    const Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose, "HDF5: no space");
    check(H5Dwrite(visits, type, memory, target, H5P_DEFAULT, bytes),
          "ledger " + path + ": cannot be written; is the disk full?");
    rows = total;
  }

  void flush() { check(H5Fflush(file, H5F_SCOPE_GLOBAL), "ledger " + path + ": cannot be flushed; is the disk full?"); }

  std::vector<char> pack(const std::vector<LedgerRow>& list) const {
    std::vector<char> bytes(list.size() * row_size);
    char* at = bytes.data();
    for (const auto& row : list) {
      at = put(put(put(put(put(at, row.step), row.epoch), row.sample), row.group), row.timestep);
      at = put(put(put(put(put(put(at, row.kind), row.captioned), row.flagged), row.weight), row.score), row.threshold);
      for (size_t c = 0; c < channels; ++c) at = put(put(at, row.raw[c]), row.z[c]);
    }
    return bytes;
  }

  /// Copies the first `keep` rows of an earlier ledger.
  void copy_from(const std::string& old_path, int64_t keep) {
    const Handle access(latest_format(), H5Pclose, "HDF5: no access list");
    const Handle old(H5Fopen(old_path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, access), H5Fclose,
                     "ledger " + old_path + ": cannot be read; restore it or start a new run folder");
    const Handle source(H5Dopen2(old, "visits", H5P_DEFAULT), H5Dclose, "ledger " + old_path + ": no /visits in it");
    const Handle space(H5Dget_space(source), H5Sclose, "HDF5: no space");
    const auto there = static_cast<int64_t>(H5Sget_simple_extent_npoints(space));
    if (there < keep) {
      throw DataError("ledger " + old_path + ": holds " + std::to_string(there) + " rows, but the checkpoint expects " +
                      std::to_string(keep) + "; it belongs to another run or was cut off");
    }
    for (hsize_t from = 0; from < static_cast<hsize_t>(keep);) {
      const hsize_t count = std::min<hsize_t>(16 * kChunk, static_cast<hsize_t>(keep) - from);
      std::vector<char> bytes(count * row_size);
      H5Sselect_hyperslab(space, H5S_SELECT_SET, &from, nullptr, &count, nullptr);
      const Handle memory(H5Screate_simple(1, &count, nullptr), H5Sclose, "HDF5: no space");
      check(H5Dread(source, type, memory, space, H5P_DEFAULT, bytes.data()),
            "ledger " + old_path + ": its rows cannot be read; it was written with other filters or is damaged");
      write(bytes.data(), count);
      from += count;
    }
  }
};

std::string LedgerHeader::channel_names() const {
  std::string names;
  for (const auto& name : channels) names += (names.empty() ? "" : ",") + name;
  return names;
}

Ledger::Ledger(const std::string& path, const LedgerHeader& header, int64_t keep_rows) {
  silence_hdf5();
  hbool_t safe = 0;
  if (H5is_library_threadsafe(&safe) < 0 || !safe)
    throw ConfigError(
        "ledger: this HDF5 was built without thread safety, which a ledger written beside the loop needs; link one "
        "that has it");
  const bool exists = std::filesystem::exists(path);
  if (keep_rows < 0) {
    if (exists) throw DataError("ledger " + path + ": exists already; move it away or resume its run");
    file_ = std::make_unique<File>(path, header);
  } else {
    if (!exists) throw DataError("ledger " + path + ": is missing, but the checkpoint continues it; restore it");
    // A copy takes the old file's place only when it is whole.
    const std::string fresh = path + ".new";
    file_ = std::make_unique<File>(fresh, header);
    file_->copy_from(path, keep_rows);
    file_->flush();
    std::filesystem::rename(fresh, path);
    file_->path = path;
    rows_ = keep_rows;
  }
  file_->start_swmr();
  file_->flush();
  thread_ = std::thread([this] { work(); });
}

Ledger::~Ledger() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Ledger::throw_if_failed() {
  if (!error_.empty()) throw DataError(error_);
}

void Ledger::append(std::vector<LedgerRow> rows) {
  const std::lock_guard lock(mutex_);
  throw_if_failed();
  rows_ += static_cast<int64_t>(rows.size());
  std::move(rows.begin(), rows.end(), std::back_inserter(queue_));
  changed_.notify_all();
}

void Ledger::flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return (queue_.empty() && !busy_) || !error_.empty(); });
  throw_if_failed();
}

void Ledger::work() {
  silence_hdf5();
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const auto rows = std::exchange(queue_, {});
    busy_ = true;
    lock.unlock();
    std::string error;
    try {
      file_->write(file_->pack(rows).data(), rows.size());
      file_->flush();
    } catch (const std::exception& failure) {
      error = failure.what();
    }
    lock.lock();
    busy_ = false;
    if (!error.empty()) error_ = error;
    changed_.notify_all();
    if (!error_.empty()) return;
  }
}

}  // namespace memsieve
