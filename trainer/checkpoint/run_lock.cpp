#include <memsieve/error.h>
#include <runtime/log.h>
#include <runtime/stop.h>
#include <trainer/checkpoint/run_lock.h>
#include <trainer/trainer_rooms.h>

#include <thread>

namespace memsieve::trainer {

namespace {

using detail::FileLock;

std::string lock_file(const std::string& folder) {
  return folder + "/run.lock";
}

[[noreturn]] void refuse(const std::string& folder, const std::string& where, const FileLock::Owner& owner) {
  throw ConfigError(where + ": " + folder + " is being written to by " + owner.text() +
                    "; wait for it or end it, or choose another folder with --set output_dir=FOLDER (if that machine "
                    "is lost: remove " +
                    lock_file(folder) + ")");
}

}  // namespace

void RunLock::take(const std::string& folder, const std::string& where, std::chrono::seconds lease) {
  const auto end = std::chrono::steady_clock::now() + lease;
  bool told = false;
  while (true) {
    const auto state = lock_.take(lock_file(folder));
    if (state == FileLock::State::unsupported)
      log_warning(folder + ": its file system has no locks, so that a second run in this folder would not be noticed");
    if (state != FileLock::State::taken) break;
    const auto owner = FileLock::owner(lock_file(folder));
    const bool here = owner.host.empty() || owner.host == FileLock::this_host();
    if (here || runtime::stop_requested() || std::chrono::steady_clock::now() >= end) refuse(folder, where, owner);
    if (!std::exchange(told, true))
      log_info(folder + ": waiting for " + owner.text() + ", which may be lost, for up to " +
               std::to_string(lease.count()) + " s");
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  folder_ = folder;
}

void RunLock::refuse_if_taken(const std::string& folder, const std::string& where) {
  if (const auto owner = FileLock::holder(lock_file(folder))) refuse(folder, where, *owner);
}

void RunLock::require_in_place() const {
  if (!lock_.held() || lock_.in_place()) return;
  throw DataError(folder_ +
                  ": is not the folder that this run writes to any more: it was moved, replaced or removed, or its "
                  "run.lock was; put it back and continue with --resume-from latest");
}

}  // namespace memsieve::trainer
