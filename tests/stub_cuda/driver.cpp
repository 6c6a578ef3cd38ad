// The driver's library (libcuda.so.1) beside runtime.cpp: what torch asks it for directly.
extern "C" {
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}
int cuDeviceGetAttribute(int* value, int, int) {
  return *value = 0;
}
int cuCtxGetCurrent(void** context) {
  static int one;
  *context = &one;
  return 0;
}
int cuGetErrorString(int, const char** text) {
  *text = "the stand-in driver refused";
  return 0;
}
int cuPointerGetAttribute(void* value, int, unsigned long long) {
  *static_cast<unsigned long long*>(value) = 0;
  return 0;
}
}
