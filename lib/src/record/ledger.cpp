#include "record/ledger.h"

#include <memsieve/error.h>

#include <iterator>
#include <utility>

namespace memsieve {

namespace {

LedgerFile open_file(const std::string& path, const LedgerHeader& header, int64_t run_rows, std::string& note) {
  detail::silence_hdf5();
  hbool_t safe = 0;
  if (H5is_library_threadsafe(&safe) < 0 || !safe)
    throw ConfigError(
        "ledger: this HDF5 was built without thread safety, which a ledger written beside the loop needs; link one "
        "that has it");
  return run_rows < 0 ? LedgerFile::create(path, header) : LedgerFile::resume(path, header, run_rows, note);
}

}  // namespace

Ledger::Ledger(const std::string& path, const LedgerHeader& header, int64_t run_rows)
    : file_(open_file(path, header, run_rows, note_)), thread_([this] { work(); }) {}

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
  std::move(rows.begin(), rows.end(), std::back_inserter(queue_));
  changed_.notify_all();
}

void Ledger::flush() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return (queue_.empty() && !busy_) || !error_.empty(); });
  throw_if_failed();
  file_.sync();
}

void Ledger::work() {
  detail::silence_hdf5();
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const auto rows = std::exchange(queue_, {});
    busy_ = true;
    lock.unlock();
    std::string error;
    try {
      file_.write(rows);
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
