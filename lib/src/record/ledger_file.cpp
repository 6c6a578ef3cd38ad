#include "record/ledger_file.h"

#include <memsieve/error.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "record/ledger_layout.h"

namespace memsieve {

namespace fs = std::filesystem;
using detail::Hdf5Handle;
using ledger::check;
using ledger::kChunk;
using ledger::must;

namespace {

/// What deflate makes of zeros: no byte of a file can stand for more.
constexpr uint64_t kBestCompression = 1032;

constexpr const char* kDamaged = "cannot be read; it is damaged";

template <typename T>
char* put(char* at, T value) {
  std::memcpy(at, &value, sizeof value);
  return at + sizeof value;
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

bool a_reader_locks(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool locked = fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (fd >= 0) ::close(fd);
  return locked;
}

/// For a file that a run has left, also one that was killed: it is marked as being written, and perhaps longer or
/// shorter than it says. h5clear mends that by the same (undocumented) properties.
Hdf5Handle access_to_what_is_left(const std::string& path) {
  Hdf5Handle access = latest_format();
  // A reader that has the file open with HDF5's lock, e.g. in a notebook, must not pass for damage. Two writers are
  // kept apart by FileLock.
  if (a_reader_locks(path)) H5Pset_file_locking(access.get(), false, true);
  // A writer finds no half-written metadata: what fails its checksum is damaged, and hundred attempts with twice the
  // pause each would take for ever.
  H5Pset_metadata_read_attempts(access.get(), 1);
  const hbool_t yes = 1;
  H5Pset(access.get(), "clear_status_flags", &yes);
  H5Pset(access.get(), "skip_eof_check", &yes);
  return access;
}

void sync_folder(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool done = fd >= 0 && ::fsync(fd) == 0;
  if (fd >= 0) ::close(fd);
  if (!done) throw DataError("folder " + path + ": cannot be synced to disk; is it full?");
}

/// Anything but a plain file would block, or not be ours to write to.
bool is_plain_file(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

/// Whether the name is taken, be it by a link that leads nowhere.
bool is_there(const std::string& path) {
  std::error_code error;
  return fs::exists(fs::symlink_status(path, error));
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

void LedgerFile::make(const std::string& path, const LedgerHeader& header, const std::vector<LedgerGap>& gaps) {
  file_ = must(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, latest_format().get()), H5Fclose,
               named() + "cannot be created; check that its folder exists and is writable");
  type_ = ledger::row_type(header.channels, row_size_);
  const hsize_t none = 0, unlimited = H5S_UNLIMITED;
  const Hdf5Handle space = must(H5Screate_simple(1, &none, &unlimited), H5Sclose, "HDF5: no space");
  const Hdf5Handle layout = ledger::row_layout();
  visits_ = must(H5Dcreate2(file_.get(), "visits", type_.get(), space.get(), H5P_DEFAULT, layout.get(), H5P_DEFAULT),
                 H5Dclose, "HDF5: no data set");
  ledger::write_text(file_, "format", "memsieve-ledger");
  ledger::write_int(file_, "version", 1);
  ledger::write_text(file_, "run_id", header.run_id);
  ledger::write_text(file_, "filters", header.channel_names());
  ledger::write_text(file_, "configuration", header.configuration);
  ledger::write_gaps(file_, gaps);
  check(H5Fstart_swmr_write(file_.get()), named() + "cannot enter single-writer mode");
  flush();
  sync();
  sync_folder(fs::absolute(path_).parent_path().string());
}

void LedgerFile::lock() {
  const std::string file = path_ + ".lock";
  if (lock_.take(file) != detail::FileLock::State::taken)
    return;  // what keeps it from being made, the ledger will meet
  throw DataError(named() + "is being written by " + detail::FileLock::owner(file).text() +
                  "; wait for it or end it, or give this run a ledger of its own");
}

LedgerFile LedgerFile::create(const std::string& path, const LedgerHeader& header) {
  LedgerFile file(path, header.channels.size());
  file.lock();
  if (is_there(path)) throw DataError("ledger " + path + ": exists already; move it away or resume its run");
  file.make(path, header, {});
  return file;
}

LedgerFile LedgerFile::resume(const std::string& path, const LedgerHeader& header, int64_t run_rows,
                              std::string& note) {
  LedgerFile file(path, header.channels.size());
  file.lock();
  std::vector<LedgerGap> gaps;
  lose(gaps, 0, run_rows);
  if (!is_there(path)) {
    if (run_rows > 0)
      note = "ledger " + path + ": is missing, but the checkpoint continues it; " + rows_are_gone(run_rows);
    file.make(path, header, gaps);
    return file;
  }
  try {
    if (!is_plain_file(path)) throw DataError(file.named() + "is no plain file");
    file.open(header, run_rows, note);
  } catch (const std::exception& error) {  // damaged headers can ask for any amount of memory
    file.visits_ = {};
    file.file_ = {};
    note = one_line(error) + ". It is now " + file.replace(header, gaps) + ", and " + rows_are_gone(run_rows);
  }
  return file;
}

std::string LedgerFile::replace(const LedgerHeader& header, const std::vector<LedgerGap>& gaps) {
  std::string aside = path_ + ".damaged";
  for (int i = 2; is_there(aside); ++i) aside = path_ + ".damaged-" + std::to_string(i);
  // The new one comes first: where none can be made, as on a full disk, that may be all that is wrong with the old one.
  const std::string made = path_ + ".new";
  std::error_code error, ignored;
  try {
    make(made, header, gaps);
  } catch (const DataError&) {
    fs::remove(made, ignored);
    throw;
  }
  fs::rename(path_, aside, error);
  if (!error) fs::rename(made, path_, error);
  if (error) throw DataError(named() + "cannot be continued, nor renamed: " + error.message());
  sync_folder(fs::absolute(path_).parent_path().string());
  return aside;
}

void LedgerFile::attach() {
  // A single writer from the first moment on, so that a process killed here leaves a file that can be read.
  file_ = must(H5Fopen(path_.c_str(), H5F_ACC_RDWR | H5F_ACC_SWMR_WRITE, access_to_what_is_left(path_).get()), H5Fclose,
               named() + kDamaged);
  check(H5Fincrement_filesize(file_.get(), 0), named() + kDamaged);
  visits_ = must(H5Dopen2(file_.get(), "visits", H5P_DEFAULT), H5Dclose, named() + kDamaged);
}

int64_t LedgerFile::look(const LedgerHeader& header, std::vector<LedgerGap>& gaps) {
  type_ = ledger::row_type(header.channels, row_size_);
  const Hdf5Handle stored = must(H5Dget_type(visits_.get()), H5Tclose, named() + kDamaged);
  if (H5Tequal(stored.get(), type_.get()) <= 0)
    throw DataError(named() + "was written with other filters, or by another version");
  const Hdf5Handle space = must(H5Dget_space(visits_.get()), H5Sclose, named() + kDamaged);
  if (H5Sget_simple_extent_ndims(space.get()) != 1) throw DataError(named() + kDamaged);
  if (!ledger::is_laid_out_like_ours(visits_)) throw DataError(named() + kDamaged + " (the layout of its rows)");
  gaps = ledger::read_gaps(file_, named() + kDamaged);
  const auto rows = static_cast<uint64_t>(H5Sget_simple_extent_npoints(space.get()));
  hsize_t bytes = 0;
  // To cut a dataset, HDF5 looks for each chunk that it claims to have.
  if (H5Fget_filesize(file_.get(), &bytes) < 0 || rows / kBestCompression > bytes / row_size_)
    throw DataError(named() + kDamaged + " (it claims more rows than it can hold)");
  return static_cast<int64_t>(rows);
}

void LedgerFile::open(const LedgerHeader& header, int64_t run_rows, std::string& note) {
  attach();
  std::vector<LedgerGap> gaps;
  const int64_t there = look(header, gaps);
  const std::vector<LedgerGap> told = gaps;
  uint64_t step = 0;
  const int64_t wanted = end_of_rows(gaps, run_rows), found = readable_rows(std::min(there, wanted), step);
  if (found < wanted) {
    note = named() + "holds " + std::to_string(found) + " rows, but the checkpoint counts on " +
           std::to_string(wanted) + "; it continues after these, and its rows " + std::to_string(found) + " to " +
           std::to_string(wanted - 1) + " are gone" + (found > 0 ? ", those after step " + std::to_string(step) : "");
    lose(gaps, found, wanted);
  }
  if (gaps != told) replace_gaps(gaps);
  cut(found);
  sync();
}

void LedgerFile::replace_gaps(const std::vector<LedgerGap>& gaps) {
  // A single writer may not change an attribute's size.
  visits_ = {};
  file_ = {};
  {
    const Hdf5Handle file =
        must(H5Fopen(path_.c_str(), H5F_ACC_RDWR, access_to_what_is_left(path_).get()), H5Fclose, named() + kDamaged);
    ledger::write_gaps(file, gaps);
    check(H5Fflush(file.get(), H5F_SCOPE_GLOBAL), named() + "cannot be flushed; is the disk full?");
  }
  attach();
}

int64_t LedgerFile::readable_rows(int64_t rows, uint64_t& step) const {
  std::vector<char> row(row_size_);
  const Hdf5Handle space = must(H5Dget_space(visits_.get()), H5Sclose, "HDF5: no space");
  const hsize_t one = 1;
  const Hdf5Handle memory = must(H5Screate_simple(1, &one, nullptr), H5Sclose, "HDF5: no space");
  // The chunk that was written last may not have reached the disk as a whole.
  for (; rows > 0; rows = (rows - 1) / static_cast<int64_t>(kChunk) * static_cast<int64_t>(kChunk)) {
    const auto last = static_cast<hsize_t>(rows - 1);
    if (!ledger::chunk_is_whole(visits_, last, row_size_)) continue;
    H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, &last, nullptr, &one, nullptr);
    if (H5Dread(visits_.get(), type_.get(), memory.get(), space.get(), H5P_DEFAULT, row.data()) < 0) continue;
    std::memcpy(&step, row.data(), sizeof step);  // its first column
    break;
  }
  return rows;
}

void LedgerFile::cut(int64_t rows) {
  rows_ = rows;
  const auto size = static_cast<hsize_t>(rows);
  check(H5Dset_extent(visits_.get(), &size), named() + "cannot be cut to " + std::to_string(rows) + " rows");
  // A damaged index of the chunks would show only when rows are written.
  const Hdf5Handle space = must(H5Dget_space(visits_.get()), H5Sclose, "HDF5: no space");
  hsize_t chunks = 0;
  check(H5Dget_num_chunks(visits_.get(), space.get(), &chunks), named() + kDamaged + " (the index of its rows)");
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
  // By its descriptor: the name may lead elsewhere by now.
  void* handle = nullptr;
  if (H5Fget_vfd_handle(file_.get(), H5P_DEFAULT, &handle) < 0 || ::fsync(*static_cast<int*>(handle)) != 0)
    throw DataError(named() + "cannot be synced to disk; is it full?");
}

}  // namespace memsieve
