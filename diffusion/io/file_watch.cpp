#include <diffusion/io/file_watch.h>
#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace memsieve::diffusion {

namespace {

bool same_inode(const struct stat& a, const struct stat& b) {
  return a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

}  // namespace

FileWatch::FileWatch(std::string path) : path_(std::move(path)) {
  detail::require_regular_file<DataError>(path_);
  if (::stat(path_.c_str(), &then_) == 0) return;
  const int why = errno;
  throw DataError(path_ + ": " + (why == ENOENT ? "no such file" : std::string("cannot be read: ") + strerror(why)));
}

void FileWatch::require_unchanged(int descriptor) const {
  const auto refuse = [&](const std::string& what) {
    throw DataError(path_ + ": " + what +
                    " while it was being read; put back what it was when the run began, and resume");
  };
  struct stat now {};
  if (::fstat(descriptor, &now) != 0) refuse(std::string("was lost (") + strerror(errno) + ")");
  if (!same_inode(now, then_)) refuse("was replaced");
  if (now.st_size < then_.st_size)
    refuse("shrank from " + std::to_string(then_.st_size) + " to " + std::to_string(now.st_size) + " bytes");
  if (now.st_size != then_.st_size || now.st_mtim.tv_sec != then_.st_mtim.tv_sec ||
      now.st_mtim.tv_nsec != then_.st_mtim.tv_nsec)
    refuse("was changed");
  if (::stat(path_.c_str(), &now) == 0 && !same_inode(now, then_)) refuse("was replaced");
}

}  // namespace memsieve::diffusion
