#include <ATen/Parallel.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <trainer/checkpoint/content_hash.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>
#include <vector>

namespace memsieve::trainer {

namespace {

constexpr int64_t kPiece = int64_t{64} << 20, kBuffer = int64_t{1} << 20;

std::string digits(uLong crc) {
  char text[9];
  std::snprintf(text, sizeof text, "%08lx", crc);
  return text;
}

class OpenFile {
 public:
  explicit OpenFile(const std::string& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    struct stat info {};
    if (descriptor_ < 0 || ::fstat(descriptor_, &info) != 0) throw std::system_error(errno, std::generic_category());
    size_ = info.st_size;
  }
  ~OpenFile() { ::close(descriptor_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int64_t size() const { return size_; }
  /// Of the bytes from `from` to `to`.
  uLong crc(int64_t from, int64_t to) const {
    std::vector<Bytef> buffer(static_cast<size_t>(std::min(kBuffer, to - from)));
    uLong crc = crc32_z(0, nullptr, 0);
    while (from < to) {
      const size_t wanted = std::min(buffer.size(), static_cast<size_t>(to - from));
      const ssize_t count = ::pread(descriptor_, buffer.data(), wanted, from);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) throw std::system_error(count < 0 ? errno : EIO, std::generic_category());
      crc = crc32_z(crc, buffer.data(), static_cast<size_t>(count));
      from += count;
    }
    return crc;
  }

 private:
  int descriptor_;
  int64_t size_ = 0;
};

}  // namespace

std::string content_hash(const std::string& path) {
  const OpenFile file(path);
  const int64_t pieces = (file.size() + kPiece - 1) / kPiece;
  std::vector<uLong> crcs(static_cast<size_t>(pieces));
  const auto end = [&](int64_t piece) { return std::min(file.size(), (piece + 1) * kPiece); };
  at::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece)
      crcs[static_cast<size_t>(piece)] = file.crc(piece * kPiece, end(piece));
  });
  uLong crc = crc32_z(0, nullptr, 0);
  for (int64_t piece = 0; piece < pieces; ++piece)
    crc = crc32_combine(crc, crcs[static_cast<size_t>(piece)], end(piece) - piece * kPiece);
  return digits(crc);
}

std::string text_hash(const std::string& text) {
  return digits(crc32_z(0, reinterpret_cast<const Bytef*>(text.data()), text.size()));
}

}  // namespace memsieve::trainer
