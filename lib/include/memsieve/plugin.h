#pragma once
// Plug-ins: filters and signals in a shared object of their own, named in the YAML (`sieve.plugins`).

#include <memsieve/export.h>
#include <memsieve/filter.h>
#include <torch/version.h>

#include <string>

/// Raised whenever Filter, SignalView, Needs, FilterEntry, SignalEntry, SignalRows, Schema or Settings change in layout
/// or meaning.
#define MEMSIEVE_ABI_VERSION 2

extern "C" {
/// Plain data, read before any function of the plug-in is called.
struct MemsieveStamp {
  char magic[8];
  int memsieve_abi;
  /// __GXX_ABI_VERSION
  int gxx_abi;
  /// _GLIBCXX_USE_CXX11_ABI
  int cxx11_strings;
  char torch[32];
};
}

#define MEMSIEVE_STAMP_INITIALIZER \
  { "msieve", MEMSIEVE_ABI_VERSION, __GXX_ABI_VERSION, _GLIBCXX_USE_CXX11_ABI, TORCH_VERSION }

/// Put once into a plug-in: MEMSIEVE_PLUGIN(function), where `void function(memsieve::FilterRegistry&)` adds
/// its filters, and its signals to registry.signals().
#define MEMSIEVE_PLUGIN(function)                                                             \
  extern "C" MEMSIEVE_API const MemsieveStamp memsieve_plugin_stamp;                          \
  extern "C" const MemsieveStamp memsieve_plugin_stamp = MEMSIEVE_STAMP_INITIALIZER;          \
  extern "C" MEMSIEVE_API void memsieve_plugin_register(memsieve::FilterRegistry* registry) { \
    function(*registry);                                                                      \
  }

namespace memsieve {

/// Opens `path` (RTLD_NOW | RTLD_LOCAL, never closed), compares its stamp with this build's, then lets it add its
/// filters and signals. Throws ConfigError saying what differs and how to mend it.
MEMSIEVE_API void load_plugin(const std::string& path, FilterRegistry& registry);

}  // namespace memsieve
