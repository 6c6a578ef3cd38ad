// A safetensors file.
#include <ATen/core/Tensor.h>
#include <diffusion/io/safetensors.h>
#include <memsieve/error.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "fuzz_input.h"

using namespace memsieve::diffusion;

namespace {

/// A file in memory, which has a path all the same.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("safetensors", MFD_CLOEXEC)) {}
  ~MemoryFile() { ::close(descriptor_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  void hold(const uint8_t* data, size_t size) const {
    fuzz::require(
        ::ftruncate(descriptor_, 0) == 0 && ::pwrite(descriptor_, data, size, 0) == static_cast<ssize_t>(size),
        "there is memory for an input");
  }

 private:
  int descriptor_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const MemoryFile file;
  file.hold(data, size);
  TensorMap tensors;
  if (fuzz::refused<memsieve::DataError>([&] { tensors = load_safetensors(file.path()); })) return 0;
  uint64_t header = 0, bytes = 0;
  std::memcpy(&header, data, sizeof header);
  for (const auto& [name, tensor] : tensors) bytes += tensor.nbytes();
  fuzz::require(8 + header + bytes == size, "every byte of the file belongs to the header or to one tensor");
  return 0;
}
