// Device memory and pinned memory, both the host's, and copies.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "stub.h"

namespace {

using stub::count;

enum class Kind { unknown, device, pinned };

/// What this process has allocated. Never destroyed: torch frees memory in destructors of its own.
struct Memory {
  struct Block {
    size_t size;
    Kind kind;
    int device;
  };
  std::mutex mutex;
  std::map<uintptr_t, Block> blocks;
  size_t on_devices = 0;  // bytes

  Block find(const void* address) {
    const std::lock_guard lock(mutex);
    const auto key = reinterpret_cast<uintptr_t>(address);
    auto after = blocks.upper_bound(key);
    if (after == blocks.begin()) return {0, Kind::unknown, 0};
    --after;
    return key < after->first + after->second.size ? after->second : Block{0, Kind::unknown, 0};
  }
};

Memory& memory() {
  static auto* one = new Memory;
  return *one;
}

cudaError_t allocate(void** out, size_t size, Kind kind) {
  size = std::max<size_t>(512, (size + 511) / 512 * 512);
  count(kind == Kind::device ? "cudaMalloc" : "cudaHostAlloc");
  if (kind == Kind::device) {
    const std::lock_guard lock(memory().mutex);
    if (memory().on_devices + size > stub::gpu_bytes()) return cudaErrorMemoryAllocation;
    memory().on_devices += size;
  }
  void* block = std::aligned_alloc(512, size);
  if (block == nullptr) return cudaErrorMemoryAllocation;
  std::memset(block, 0, size);
  const std::lock_guard lock(memory().mutex);
  memory().blocks[reinterpret_cast<uintptr_t>(block)] = {size, kind, stub::current_device()};
  *out = block;
  return cudaSuccess;
}

cudaError_t release(void* block) {
  if (block == nullptr) return cudaSuccess;
  {
    const std::lock_guard lock(memory().mutex);
    const auto found = memory().blocks.find(reinterpret_cast<uintptr_t>(block));
    if (found != memory().blocks.end() && found->second.kind == Kind::device) memory().on_devices -= found->second.size;
    if (found != memory().blocks.end()) memory().blocks.erase(found);
  }
  std::free(block);
  return cudaSuccess;
}

/// What the host would wait for: any copy without a stream, and one from the device to memory that is not pinned.
cudaError_t copy(void* to, const void* from, size_t size, bool waits) {
  const Kind target = memory().find(to).kind, source = memory().find(from).kind;
  if (waits) {
    count("cudaMemcpy");
  } else if (target == Kind::unknown && source == Kind::device) {
    count("device to pageable");
  } else if (source == Kind::unknown && target == Kind::device) {
    count("pageable to device");
  }
  std::memcpy(to, from, size);
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** out, size_t size) {
  return allocate(out, size, Kind::device);
}
cudaError_t cudaMallocAsync(void** out, size_t size, cudaStream_t) {
  return allocate(out, size, Kind::device);
}
cudaError_t cudaFree(void* block) {
  return release(block);
}
cudaError_t cudaFreeAsync(void* block, cudaStream_t) {
  return release(block);
}
cudaError_t cudaHostAlloc(void** out, size_t size, unsigned) {
  return allocate(out, size, Kind::pinned);
}
cudaError_t cudaFreeHost(void* block) {
  return release(block);
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(memory().mutex);
  *total = stub::gpu_bytes();
  *free = *total - memory().on_devices;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* address) {
  const auto block = memory().find(address);
  *a = {};
  a->type = block.kind == Kind::device   ? cudaMemoryTypeDevice
            : block.kind == Kind::pinned ? cudaMemoryTypeHost
                                         : cudaMemoryTypeUnregistered;
  a->device = block.device;
  a->devicePointer = a->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  return copy(to, from, size, true);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  return copy(to, from, size, false);
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size, cudaStream_t) {
  return copy(to, from, size, false);
}
cudaError_t cudaMemset(void* to, int value, size_t size) {
  count("cudaMemset");
  std::memset(to, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t) {
  std::memset(to, value, size);
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void** out, const void*) {
  static char block[1 << 16];
  *out = block;
  return cudaSuccess;
}

}  // extern "C"
