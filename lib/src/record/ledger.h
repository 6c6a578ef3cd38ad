#pragma once
// The HDF5 record of every visit, written off the hot path. Private to the library; docs/ledger_format.md tells
// its layout.

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace memsieve {

/// One visit; `raw` and `z` hold a value for each channel.
struct LedgerRow {
  uint64_t step = 0;
  uint32_t epoch = 0;
  int64_t sample = 0, group = 0;
  float timestep = 0;
  /// 0 = training row, 1 = held-out row
  uint8_t kind = 0;
  uint8_t captioned = 1, flagged = 0;
  float weight = 1, score = 0, threshold = 0;
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

/// Appends rows in a thread of its own. The file is in single-writer-multiple-reader mode, so that it can be read while
/// it is written and, after a crash, up to the last flush.
class Ledger {
 public:
  /// Creates `path`; refuses an existing file (DataError). With `keep_rows` >= 0 the file must exist and is continued
  /// after its first `keep_rows` rows.
  Ledger(const std::string& path, const LedgerHeader& header, int64_t keep_rows = -1);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  /// Hands rows over; returns at once. Throws DataError if an earlier write failed.
  void append(std::vector<LedgerRow> rows);
  /// Makes the writer put what it has on disk; waits for it. Throws DataError if that fails.
  void flush();
  /// Rows handed over so far.
  int64_t rows() const { return rows_; }

 private:
  struct File;
  void work();
  void throw_if_failed();

  std::unique_ptr<File> file_;
  int64_t rows_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<LedgerRow> queue_;
  bool stop_ = false, busy_ = false;
  std::string error_;
  std::thread thread_;
};

}  // namespace memsieve
