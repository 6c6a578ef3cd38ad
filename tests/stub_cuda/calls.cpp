// Counts what the host asks for.
#include <execinfo.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

#include "stub.h"

namespace stub {

namespace {

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

}  // namespace

void count(const char* call) {
  const std::lock_guard lock(calls().mutex);
  ++calls().counts[call];
  trace(call);
}

void count_kernel() {
  ++kernels;
}

namespace {

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

}  // namespace

}  // namespace stub
