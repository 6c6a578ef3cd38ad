#pragma once
// A file that is read while a run goes on must stay what it was when it was opened.

#include <sys/stat.h>

#include <string>

namespace memsieve::diffusion {

/// Remembers size, time of modification and inode of a file. What has the same three is taken for the same: the
/// contents are not compared.
class FileWatch {
 public:
  /// To be made before the file is opened. DataError if there is none at `path`, or something that is no regular file.
  explicit FileWatch(std::string path);

  const std::string& path() const { return path_; }
  /// DataError if the file that is open as `descriptor` is not what it was, or if another file has taken its place at
  /// the path. One that was renamed or deleted is whole as long as it is open, and passes. Two system calls; safe from
  /// several threads. To be called after what was read, before it is used.
  void require_unchanged(int descriptor) const;

 private:
  std::string path_;
  struct stat then_ {};
};

}  // namespace memsieve::diffusion
