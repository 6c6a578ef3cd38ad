#pragma once
// A lock that a process holds on a file's name and that ends with the process. Private to this repository:
// it is not installed.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

namespace memsieve::detail {

/// An open file description's lock (fcntl(2), F_OFD_SETLK): the kernel frees it when the process ends, however that is,
/// and NFS has it wherever its server has locks. The file says who holds it, and goes when the lock is let go.
class FileLock {
 public:
  /// What the file says of its holder.
  struct Owner {
    std::string host;
    long pid = 0;

    /// "process 1234 on node7", "another process" where the file does not say
    std::string text() const { return pid > 0 ? "process " + std::to_string(pid) + " on " + host : "another process"; }
  };
  enum class State { held, taken, unsupported, failed };

  FileLock() = default;
  FileLock(FileLock&& other) noexcept { *this = std::move(other); }
  FileLock& operator=(FileLock&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    std::swap(process_, other.process_);
    path_.swap(other.path_);
    mark_.swap(other.mark_);
    return *this;
  }
  ~FileLock() {
    if (descriptor_ < 0) return;
    if (process_ == ::getpid() && in_place()) ::unlink(path_.c_str());  // a forked child has the same description
    ::close(descriptor_);
  }

  /// Tries to take the lock at `path`. taken: another process has it. unsupported: the file system has no locks; the
  /// file names this process all the same. failed: there can be no such file; errno says why.
  State take(const std::string& path) {
    for (int attempt = 0;; ++attempt) {
      const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
      if (file < 0) return State::failed;
      const State state = lock(file);
      if (state == State::taken) {
        ::close(file);
        return state;
      }
      // Its last holder may have removed the file in between. Where inodes have no lasting numbers,
      // once more is enough.
      if (attempt < 3 && !names(path, file)) {
        ::close(file);
        continue;
      }
      *this = FileLock(file, path);
      return state;
    }
  }
  bool held() const { return descriptor_ >= 0; }
  /// Whether the file is still there and names this process.
  bool in_place() const {
    errno = 0;
    const std::string text = read(path_);
    return text.empty() ? errno != ENOENT && errno != ENOTDIR : mark_.empty() || text == mark_;
  }

  /// Who holds the lock at `path`, as far as can be known without taking it; nobody = nullopt.
  static std::optional<Owner> holder(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return std::nullopt;
    struct flock asked = whole();
    const bool taken = ::fcntl(file, F_OFD_GETLK, &asked) == 0 && asked.l_type != F_UNLCK;
    ::close(file);
    return taken ? std::optional(owner(path)) : std::nullopt;
  }
  static Owner owner(const std::string& path) {
    Owner owner;
    std::istringstream(read(path)) >> owner.host >> owner.pid;
    return owner;
  }
  static std::string this_host() {
    char name[HOST_NAME_MAX + 1] = {};
    return ::gethostname(name, sizeof name - 1) == 0 && name[0] != 0 ? name : "localhost";
  }

 private:
  FileLock(int descriptor, const std::string& path) : descriptor_(descriptor), process_(::getpid()), path_(path) {
    struct stat info {};
    ::fstat(descriptor, &info);  // hosts in containers may share name and process ids, but not inodes
    const std::string mark = this_host() + " " + std::to_string(process_) + " " + std::to_string(info.st_ino) + "\n";
    // On disk at once, since over NFS others see only what has been synced.
    const bool written = ::ftruncate(descriptor, 0) == 0 &&
                         ::pwrite(descriptor, mark.data(), mark.size(), 0) == static_cast<ssize_t>(mark.size()) &&
                         ::fsync(descriptor) == 0;
    if (written) mark_ = mark;
  }

  static struct flock whole() {
    struct flock request {};
    request.l_type = F_WRLCK;
    request.l_whence = SEEK_SET;
    return request;
  }
  static State lock(int file) {
    struct flock request = whole();
    if (::fcntl(file, F_OFD_SETLK, &request) == 0) return State::held;
    return errno == EAGAIN || errno == EACCES ? State::taken : State::unsupported;
  }
  static bool names(const std::string& path, int file) {
    struct stat there {
    }, mine{};
    return ::stat(path.c_str(), &there) == 0 && ::fstat(file, &mine) == 0 && there.st_ino == mine.st_ino &&
           there.st_dev == mine.st_dev;
  }
  /// "" if it cannot be read; errno then says why.
  static std::string read(const std::string& path) {
    std::string text(512, '\0');
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return "";
    const ssize_t count = ::read(file, text.data(), text.size());
    ::close(file);
    text.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return text;
  }

  int descriptor_ = -1;
  pid_t process_ = 0;
  std::string path_, mark_;
};

}  // namespace memsieve::detail
