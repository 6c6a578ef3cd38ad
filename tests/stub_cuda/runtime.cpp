// A CUDA runtime that computes nothing, for machines without a GPU: memory is host memory, copies are made,
// kernels are not run. Preloaded, it lets the code for GPUs run up to the last host instruction, so that a
// test sees tensors on the wrong device, wrong dtypes and every wait of the host. It answers as an A100
// would.
//   MEMSIEVE_STUB_GPUS=N       how many GPUs there are (default 1)
//   MEMSIEVE_STUB_MIB=N        memory of each (default 80 GiB)
//   MEMSIEVE_STUB_REPORT=FILE  counts of the calls that wait, or might, or allocate, and of kernels, as JSON, written at
//   exit MEMSIEVE_STUB_TRACE=FILE   one line with the return addresses for each such call
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

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

thread_local int current_device = 0;

/// Calls by name.
struct Calls {
  std::mutex mutex;
  std::map<std::string, long> counts;
};

std::atomic<long> kernels{0};

Calls& calls() {
  static auto* one = new Calls;
  return *one;
}

void trace(const char* name) {
  const char* path = std::getenv("MEMSIEVE_STUB_TRACE");
  if (path == nullptr) return;
  void* frames[48];
  const int depth = backtrace(frames, 48);
  char** symbols = backtrace_symbols(frames, depth);
  std::string text = name;
  for (int i = 2; i < depth; ++i) text += std::string("\n    ") + symbols[i];
  std::free(symbols);
  if (FILE* file = std::fopen(path, "a")) {
    std::fprintf(file, "%s\n", text.c_str());
    std::fclose(file);
  }
}

void count(const char* name) {
  const std::lock_guard lock(calls().mutex);
  ++calls().counts[name];
  trace(name);
}

__attribute__((destructor)) void report() {
  const char* path = std::getenv("MEMSIEVE_STUB_REPORT");
  if (path == nullptr) return;
  const std::lock_guard lock(calls().mutex);
  std::string text = "\"kernels\": " + std::to_string(kernels);
  for (const auto& [name, n] : calls().counts) text += ", \"" + name + "\": " + std::to_string(n);
  if (FILE* file = std::fopen(path, "w")) {
    std::fprintf(file, "{%s}\n", text.c_str());
    std::fclose(file);
  }
}

int gpus() {
  const char* text = std::getenv("MEMSIEVE_STUB_GPUS");
  return text == nullptr ? 1 : std::atoi(text);
}

size_t gpu_bytes() {
  const char* text = std::getenv("MEMSIEVE_STUB_MIB");
  return text == nullptr ? size_t{80} << 30 : std::strtoul(text, nullptr, 10) << 20;
}

cudaError_t allocate(void** out, size_t size, Kind kind) {
  size = std::max<size_t>(512, (size + 511) / 512 * 512);
  count(kind == Kind::device ? "cudaMalloc" : "cudaHostAlloc");
  if (kind == Kind::device) {
    const std::lock_guard lock(memory().mutex);
    if (memory().on_devices + size > gpu_bytes()) return cudaErrorMemoryAllocation;
    memory().on_devices += size;
  }
  void* block = std::aligned_alloc(512, size);
  if (block == nullptr) return cudaErrorMemoryAllocation;
  std::memset(block, 0, size);
  const std::lock_guard lock(memory().mutex);
  memory().blocks[reinterpret_cast<uintptr_t>(block)] = {size, kind, current_device};
  *out = block;
  return cudaSuccess;
}

cudaError_t release(void* block) {
  if (block == nullptr) return cudaSuccess;
  {
    const std::lock_guard lock(memory().mutex);
    const auto found = memory().blocks.find(reinterpret_cast<uintptr_t>(block));
    if (found != memory().blocks.end() && found->second.kind == Kind::device)
      memory().on_devices -= found->second.size;
    if (found != memory().blocks.end()) memory().blocks.erase(found);
  }
  std::free(block);
  return cudaSuccess;
}

void* some_handle() {
  return std::malloc(16);
}

/// What the host would wait for: any copy without a stream, and one from the device to memory that is not
/// pinned.
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

/// Convolutions then go through torch's own kernels: cuDNN asks a driver of its own.
void without_cudnn() {
  using Context = void* (*)();
  using Set = void (*)(void*, bool);
  const auto context = reinterpret_cast<Context>(dlsym(RTLD_DEFAULT, "_ZN2at13globalContextEv"));
  const auto set = reinterpret_cast<Set>(dlsym(RTLD_DEFAULT, "_ZN2at7Context19setUserEnabledCuDNNEb"));
  if (context != nullptr && set != nullptr) set(context(), false);
}

}  // namespace

extern "C" {

// Devices.
cudaError_t cudaGetDeviceCount(int* n) {
  static const bool done = (without_cudnn(), true);
  (void)done;
  *n = gpus();
  return *n > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= gpus()) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "a GPU that computes nothing");
  p->uuid.bytes[0] = static_cast<char>(device + 1);
  p->major = 8;
  p->minor = 0;
  p->multiProcessorCount = 108;
  p->totalGlobalMem = gpu_bytes();
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 166912;
  p->sharedMemPerMultiprocessor = 167936;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  for (int i = 0; i < 3; ++i) p->maxThreadsDim[i] = i == 2 ? 64 : 1024;
  for (int i = 0; i < 3; ++i) p->maxGridSize[i] = i == 0 ? 2147483647 : 65535;
  p->l2CacheSize = 40 << 20;
  p->memPitch = 2147483647;
  p->textureAlignment = 512;
  p->unifiedAddressing = p->concurrentKernels = p->canMapHostMemory = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  cudaGetDeviceProperties(&p, device);
  const std::map<int, int> known = {{cudaDevAttrMaxThreadsPerBlock, p.maxThreadsPerBlock},
                                    {cudaDevAttrMaxBlockDimX, 1024},
                                    {cudaDevAttrMaxGridDimX, p.maxGridSize[0]},
                                    {cudaDevAttrMaxGridDimY, p.maxGridSize[1]},
                                    {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
                                    {cudaDevAttrMaxSharedMemoryPerBlockOptin, 166912},
                                    {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 167936},
                                    {cudaDevAttrWarpSize, 32},
                                    {cudaDevAttrMultiProcessorCount, p.multiProcessorCount},
                                    {cudaDevAttrComputeCapabilityMajor, p.major},
                                    {cudaDevAttrComputeCapabilityMinor, p.minor},
                                    {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
                                    {cudaDevAttrL2CacheSize, p.l2CacheSize}};
  const auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  return cudaDriverGetVersion(version);
}
const char* cudaGetErrorName(cudaError_t) {
  return "error of the stand-in";
}
const char* cudaGetErrorString(cudaError_t) {
  return "the stand-in CUDA runtime refused";
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  // The stand-in driver beside this library; torch has opened it or will be given it here.
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver == nullptr ? nullptr : dlsym(driver, name);
  if (found != nullptr)
    *found = *function == nullptr ? cudaDriverEntryPointSymbolNotFound : cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// Memory.
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
  *total = gpu_bytes();
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

// Streams and events. Everything is done at once, so there is nothing to wait for; the calls are counted.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = static_cast<cudaStream_t>(some_handle());
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  count("cudaStreamSynchronize");
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  count("cudaDeviceSynchronize");
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**,
                                     size_t* n) {
  *status = cudaStreamCaptureStatusNone;
  if (id != nullptr) *id = 0;
  if (n != nullptr) *n = 0;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = static_cast<cudaEvent_t>(some_handle());
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  std::free(event);
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  count("cudaEventSynchronize");
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1;
  return cudaSuccess;
}

// Kernels.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  std::memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = 80;
  a->maxDynamicSharedSizeBytes = 166912;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t,
                                                                   unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  ++kernels;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  ++kernels;
  return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

}  // extern "C"
