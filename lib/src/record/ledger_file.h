#pragma once
// The ledger's HDF5 file: made, continued where a checkpoint left it, written, synced. Private to the library;
// docs/ledger_format.md tells its layout.

#include <memsieve/detail/file_lock.h>
#include <memsieve/detail/hdf5_handle.h>

#include <cstdint>
#include <string>
#include <vector>

#include "record/ledger_layout.h"

namespace memsieve {

/// What a visit was: the column `kind`.
enum LedgerKind : uint8_t { kTrainingRow = 0, kHeldOutRow = 1, kPassedOver = 2, kLook = 3 };

/// One visit; `raw` and `z` hold a value for each channel.
struct LedgerRow {
  uint64_t step = 0;
  uint32_t epoch = 0;
  int64_t sample = 0, group = 0;
  float timestep = 0;
  uint8_t kind = kTrainingRow;
  uint8_t captioned = 1, flagged = 0;
  float weight = 1, score = 0, threshold = 0, alike = 0;
  std::vector<float> raw, z;
};

struct LedgerHeader {
  std::string run_id;
  std::vector<std::string> channels;
  /// resolved YAML
  std::string configuration;

  /// "magnitude,prediction_error": in the order of the channels.
  std::string channel_names() const;
};

/// The row of the file at which the run's first `run_rows` rows end. Gaps that begin there or later are taken out.
int64_t end_of_rows(std::vector<LedgerGap>& gaps, int64_t run_rows);

/// While it lives, `path`.lock keeps other processes from writing the same file; one that lives elsewhere is refused
/// with DataError.
class LedgerFile {
 public:
  /// Creates `path`, which must not exist. Throws DataError.
  static LedgerFile create(const std::string& path, const LedgerHeader& header);
  /// Continues `path` after the run's first `run_rows` rows: what comes after them is cut off, in place. Fewer rows
  /// than that, a file that is missing or one that cannot be read (it is renamed then) are no error: `note` says what
  /// is gone. Throws DataError if no file can be made in its place.
  static LedgerFile resume(const std::string& path, const LedgerHeader& header, int64_t run_rows, std::string& note);

  /// Appends rows and hands them to the operating system. Throws DataError.
  void write(const std::vector<LedgerRow>& rows);
  /// Waits until all that was written is on the disk. Throws DataError.
  void sync() const;

 private:
  LedgerFile(std::string path, size_t channels) : path_(std::move(path)), channels_(channels) {}
  void lock();
  void make(const std::string& path, const LedgerHeader& header, const std::vector<LedgerGap>& gaps);
  /// Keeps the file that cannot be continued under another name, which is returned, and makes a new one.
  std::string replace(const LedgerHeader& header, const std::vector<LedgerGap>& gaps);
  /// Opens what a run has left, also one that was killed, and cuts it.
  void open(const LedgerHeader& header, int64_t run_rows, std::string& note);
  void attach();
  /// Rows there, and what is told of missing ones. Throws DataError if they are not of these columns.
  int64_t look(const LedgerHeader& header, std::vector<LedgerGap>& gaps);
  void replace_gaps(const std::vector<LedgerGap>& gaps);
  void cut(int64_t rows);
  /// The last of the first `rows` rows that can be read, plus one; `step` is that row's.
  int64_t readable_rows(int64_t rows, uint64_t& step) const;
  void flush() const;
  std::string named() const { return "ledger " + path_ + ": "; }

  std::string path_;
  size_t channels_, row_size_ = 0;
  detail::FileLock lock_;
  /// the dataset is closed before the file
  detail::Hdf5Handle file_, type_, visits_;
  int64_t rows_ = 0;
};

}  // namespace memsieve
