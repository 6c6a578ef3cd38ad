#pragma once
// What the parts of the stand-in share. Environment:
//   MEMSIEVE_STUB_GPUS    how many GPUs there are (default 1)
//   MEMSIEVE_STUB_MIB     memory of each (default 80 GiB)
//   MEMSIEVE_STUB_REPORT  a file for how often it was asked to wait, to allocate, for a kernel: JSON, at exit
//   MEMSIEVE_STUB_TRACE   a file for the return addresses of each such call, kernels excepted

#include <cstddef>

namespace stub {

int gpus();
size_t gpu_bytes();
/// this thread's
int current_device();

/// Notes that `call` was made: one that waits, that might wait, or that asks for memory.
void count(const char* call);
void count_kernel();

}  // namespace stub
