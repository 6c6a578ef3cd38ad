// NCCL, cuBLAS and cuSOLVER beside runtime.cpp: they answer as if all had gone well. Between several ranks nothing is
// exchanged. Handles are typeless here, so no header of theirs is needed.
#include <cstdint>
#include <cstdlib>

namespace {

int make(void** handle) {
  *handle = std::calloc(1, 256);
  return 0;
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
  return make(handle);
}
int cublasLtCreate(void** handle) {
  return make(handle);
}
int cublasLtMatmulDescCreate(void** handle, int, int) {
  return make(handle);
}
int cublasLtMatrixLayoutCreate(void** handle, int, uint64_t, uint64_t, int64_t) {
  return make(handle);
}
int cublasLtMatmulPreferenceCreate(void** handle) {
  return make(handle);
}
int cublasGetPointerMode_v2(void*, int* mode) {
  return *mode = 0;
}
int cublasGetMathMode(void*, int* mode) {
  return *mode = 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void*, int* found) {
  *found = 1;
  return 0;
}
int cusolverDnCreate(void** handle) {
  return make(handle);
}
int cusolverDnCreateParams(void** handle) {
  return make(handle);
}
int cusolverDnSgetrf_bufferSize(void*, int, int, void*, int, int* size) {
  return *size = 0;
}
int cusolverDnXgetrf_bufferSize(void*, void*, int64_t, int64_t, int, const void*, int64_t, int, size_t* device,
                                size_t* host) {
  *device = *host = 0;
  return 0;
}

}  // extern "C"
