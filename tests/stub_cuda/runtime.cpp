// A CUDA runtime that computes nothing, for machines without a GPU: memory is host memory, copies are made, kernels are
// not run. Preloaded, it lets the code for GPUs run up to the last host instruction, so that a test sees tensors on the
// wrong device, wrong dtypes and every wait of the host. It answers as an A100 would. Here: devices, streams, events
// and kernels.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "stub.h"

namespace {

using stub::count;
using stub::gpu_bytes;
using stub::gpus;

thread_local int device_now = 0;

void* some_handle() {
  return std::malloc(16);
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

namespace stub {

int gpus() {
  const char* text = std::getenv("MEMSIEVE_STUB_GPUS");
  return text == nullptr ? 1 : std::atoi(text);
}

size_t gpu_bytes() {
  const char* text = std::getenv("MEMSIEVE_STUB_MIB");
  return text == nullptr ? size_t{80} << 30 : std::strtoul(text, nullptr, 10) << 20;
}

int current_device() {
  return device_now;
}

}  // namespace stub

extern "C" {

// Devices.
cudaError_t cudaGetDeviceCount(int* n) {
  static const bool done = (without_cudnn(), true);
  (void)done;
  *n = gpus();
  return *n > 0 ? cudaSuccess : cudaErrorNoDevice;
}
cudaError_t cudaGetDevice(int* device) {
  *device = device_now;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= gpus()) return cudaErrorInvalidDevice;
  device_now = device;
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
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t* n) {
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
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  stub::count_kernel();
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) {
  stub::count_kernel();
  return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle[1];
  return handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

}  // extern "C"
