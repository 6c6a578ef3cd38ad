#pragma once
// Plug-ins: filters and signals in a shared object of their own, named in the YAML (`sieve.plugins`).

#include <memsieve/export.h>
#include <memsieve/filter.h>
#include <torch/version.h>

#include <string>
#include <vector>

/// Raised whenever Filter, SignalView, Needs, FilterEntry, SignalEntry, SignalRows, Schema or Settings change in layout
/// or meaning.
#define MEMSIEVE_ABI_VERSION 2

extern "C" {
/// Plain data, read from the file before it is opened as a library.
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

/// Where the stamp stands in the file, so that it can be read before anything in it runs.
#define MEMSIEVE_STAMP_SECTION ".memsieve_stamp"

#define MEMSIEVE_STAMP_INITIALIZER \
  { "msieve", MEMSIEVE_ABI_VERSION, __GXX_ABI_VERSION, _GLIBCXX_USE_CXX11_ABI, TORCH_VERSION }

/// Put once into a plug-in: MEMSIEVE_PLUGIN(function), where `void function(memsieve::FilterRegistry&)` adds
/// its filters, and its signals to registry.signals().
#define MEMSIEVE_PLUGIN(function)                                                                               \
  extern "C" MEMSIEVE_API const MemsieveStamp memsieve_plugin_stamp;                                            \
  extern "C" const MemsieveStamp memsieve_plugin_stamp __attribute__((section(MEMSIEVE_STAMP_SECTION), used)) = \
      MEMSIEVE_STAMP_INITIALIZER;                                                                               \
  extern "C" MEMSIEVE_API void memsieve_plugin_register(memsieve::FilterRegistry* registry) {                   \
    function(*registry);                                                                                        \
  }

namespace memsieve {

/// Whose plug-ins are loaded: those that only root and this user can change (the file and the folders that it lies in),
/// or anyone's.
enum class PluginTrust { owners, anyone };

/// Checks the file's owner, permissions and stamp, opens it (RTLD_NOW | RTLD_LOCAL, never closed), and lets it add its
/// filters and signals. Nothing in a file runs that is refused. Throws ConfigError saying what is wrong and
/// how to mend it.
MEMSIEVE_API void load_plugin(const std::string& path, FilterRegistry& registry,
                              PluginTrust trust = PluginTrust::owners);

/// What a configuration says of plug-ins: `sieve.plugins` and `sieve.plugins_of_anyone`.
struct PluginsNamed {
  std::vector<std::string> paths;
  PluginTrust trust = PluginTrust::owners;
};

/// Reads them from YAML text, before any schema is known. Throws ConfigError.
MEMSIEVE_API PluginsNamed plugins_named(const std::string& yaml, const std::string& source,
                                        const std::vector<std::string>& overrides = {});

/// load_plugin for each of them.
MEMSIEVE_API void load_plugins(const PluginsNamed& named, FilterRegistry& registry);

}  // namespace memsieve
