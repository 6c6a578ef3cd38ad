#pragma once
// The host side of the sieve: what follows later through pinned memory. Private to the library.

#include <ATen/core/Tensor.h>
#include <memsieve/detail/host_copy.h>
#include <memsieve/sieve.h>

#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "record/ledger.h"
#include "record/options.h"
#include "record/record.h"

namespace memsieve {

class Reporter {
 public:
  /// Called with each step's records once they are on the host, in the order of steps.
  using Arrival = std::function<void(int64_t step, const Gathered& records)>;
  Reporter(const RecordOptions& options, const Setup& setup, const RecordShape& shape, int64_t rank,
           const std::string& configuration, Arrival arrival);
  ~Reporter();

  /// Starts the copy of a step's gathered records [ranks, length] to the host; `passed_over`: samples.
  void push(const Clock& clock, const at::Tensor& all, std::vector<int64_t> passed_over = {});
  /// Works through the steps that are due: all on a CPU, all but the newest two on a GPU; every one with `everything`.
  /// Throws what those steps brought: PeerError, NonFiniteError; for each step after one of these Error.
  void catch_up(bool everything);
  /// Keeps the first error of this rank, to be the cause of the PeerError that its record will bring.
  void blame(const std::exception_ptr& error);
  /// Throws PeerError, `where` in front, if any rank's record (at least its head; [ranks, ...] on the CPU) carries
  /// an error.
  void throw_peer_error(const std::string& where, const at::Tensor& all);
  /// Why the ledger could not be written since the last call, or null. It is for all ranks to know, so catch_up does
  /// not throw it.
  std::exception_ptr take_write_error() { return std::exchange(write_error_, nullptr); }
  /// Hands buffered ledger rows to the writer and waits until they are on the disk. Throws DataError (rank 0).
  void write_out();
  /// Opens the ledger; `run_rows` >= 0 continues an existing one after the run's first so many rows.
  void open_ledger(int64_t run_rows);
  /// What is gone of the ledger that was continued, "" if nothing (rank 0).
  std::string ledger_note() const { return ledger_ ? ledger_->note() : ""; }
  bool ledger_is_open() const { return ledger_ != nullptr; }
  bool wants_ledger() const { return writes_ledger_; }
  /// a step was pushed
  bool has_begun() const { return begun_; }
  /// Rows of the run's ledger on all ranks' account (kept by every rank, so that checkpoints agree), whether the file
  /// has lost some of them or not.
  int64_t ledger_rows() const { return ledger_rows_; }
  void set_ledger_rows(int64_t rows) { ledger_rows_ = rows; }
  std::string channel_names() const { return header_.channel_names(); }
  std::vector<StepReport> take() {
    const auto taken = std::exchange(reports_, {});
    return {taken.begin(), taken.end()};
  }

 private:
  struct Pending {
    Clock clock;
    detail::HostCopy records;
    std::vector<int64_t> passed_over;
  };
  struct Arrived {
    Clock clock;
    at::Tensor host;
    std::vector<int64_t> passed_over;
  };
  Pending take_oldest();
  void digest(const Arrived& step);
  StepReport report(const Arrived& step, const Gathered& host) const;
  void add_rows(const Arrived& step, const at::Tensor& lines, LedgerKind kind);
  void add_passed_over(const Arrived& step);
  int64_t group_of(int64_t sample) const { return group_id_.empty() ? sample : group_id_[sample]; }
  void throw_errors(const Arrived& step, const Gathered& host);

  const RecordOptions& options_;
  RecordShape shape_;
  Arrival arrival_;
  int64_t held_out_size_, lag_;
  std::vector<int64_t> group_id_;
  std::string path_;
  LedgerHeader header_;
  int64_t rank_;
  bool writes_ledger_, begun_ = false;
  std::exception_ptr own_error_, write_error_;
  /// the message of the error after which nothing was updated any more, "" = none
  std::string ended_;
  std::deque<Pending> pending_;
  std::deque<StepReport> reports_;
  std::vector<LedgerRow> rows_;
  int64_t ledger_rows_ = 0, unwritten_steps_ = 0;
  std::unique_ptr<Ledger> ledger_;
};

}  // namespace memsieve
