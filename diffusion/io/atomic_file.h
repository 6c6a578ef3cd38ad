#pragma once
// A file that is there whole or not at all.

#include <cstdint>
#include <string>

namespace memsieve::diffusion {

/// Writes to `path` + ".tmp.<pid>"; commit() fsyncs it, renames it to `path` and fsyncs the folder. Without commit()
/// the temporary file goes and `path` stays as it was. DataError naming `path` for whatever the system refuses.
class AtomicFile {
 public:
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, uint64_t bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* what) const;

  std::string path_, temporary_;
  int descriptor_ = -1;
};

/// All of `text` in one such file.
void write_text_atomically(const std::string& path, const std::string& text);

}  // namespace memsieve::diffusion
