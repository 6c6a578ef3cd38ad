#pragma once
// One run, one folder: a second process that would write to a live run's folder is kept out.

#include <memsieve/detail/file_lock.h>

#include <chrono>
#include <string>

namespace memsieve::trainer {

/// Holds run.lock in a run's folder; it is free again when this object or the process ends. Where the file system has
/// no locks it warns and keeps nobody out.
class RunLock {
 public:
  /// NFS frees the lock of a machine that is lost when its lease ends: after 90 s, as Linux's servers come.
  static constexpr std::chrono::seconds kLease{100};

  /// Takes the lock of `folder`. Without such a folder, or one that cannot be written to, nothing is held. Throws
  /// ConfigError naming the holder's host and process: at once if that is this host, else after it had `lease` to end.
  /// `where` ("run.yaml:3: output_dir") begins the message.
  void take(const std::string& folder, const std::string& where, std::chrono::seconds lease = kLease);
  /// Throws ConfigError if a run holds the lock of `folder`; takes nothing and waits for nothing.
  static void refuse_if_taken(const std::string& folder, const std::string& where);
  bool held() const { return lock_.held(); }
  /// Throws DataError if the folder that was locked is not what its path names any more.
  void require_in_place() const;

 private:
  std::string folder_;
  detail::FileLock lock_;
};

}  // namespace memsieve::trainer
