#pragma once
// The record of every visit, written off the hot path. Private to the library.

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "record/ledger_file.h"

namespace memsieve {

/// Appends rows in a thread of its own. The file is in single-writer-multiple-reader mode, so that it can be read while
/// it is written and, after a crash, up to the last write.
class Ledger {
 public:
  /// Creates `path`; refuses an existing file (DataError). With `run_rows` >= 0 the file is continued after the run's
  /// first `run_rows` rows.
  Ledger(const std::string& path, const LedgerHeader& header, int64_t run_rows = -1);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  /// Hands rows over; returns at once. Throws DataError if an earlier write failed.
  void append(std::vector<LedgerRow> rows);
  /// Waits until every row handed over is on the disk (fsync). Throws DataError if that fails.
  void flush();
  /// What is gone of the rows that were to be continued, "" if nothing.
  const std::string& note() const { return note_; }

 private:
  void work();
  void throw_if_failed();

  std::string note_;
  LedgerFile file_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<LedgerRow> queue_;
  bool stop_ = false, busy_ = false;
  std::string error_;
  std::thread thread_;
};

}  // namespace memsieve
