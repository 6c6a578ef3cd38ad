#include <dlfcn.h>
#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <memsieve/filter.h>
#include <memsieve/plugin.h>
#include <memsieve/schema.h>
#include <yaml-cpp/yaml.h>

#include <cstring>
#include <filesystem>

#include "config/plugin_file.h"

namespace memsieve {

namespace {

namespace fs = std::filesystem;

std::string describe(const MemsieveStamp& stamp) {
  const std::string torch(stamp.torch, strnlen(stamp.torch, sizeof stamp.torch));
  return "memsieve ABI " + std::to_string(stamp.memsieve_abi) + ", torch " + torch + ", C++ ABI " +
         std::to_string(stamp.gxx_abi) + "/" + std::to_string(stamp.cxx11_strings);
}

bool same(const MemsieveStamp& a, const MemsieveStamp& b) {
  return a.memsieve_abi == b.memsieve_abi && a.gxx_abi == b.gxx_abi && a.cxx11_strings == b.cxx11_strings &&
         std::strncmp(a.torch, b.torch, sizeof a.torch) == 0;
}

/// The file itself, without links on the way to it.
std::string real_file(const std::string& path) {
  std::error_code error;
  const fs::path file = fs::canonical(path, error);
  if (error) throw ConfigError("plug-in " + path + ": cannot be opened: " + error.message());
  detail::require_regular_file<ConfigError>(file);
  return file;
}

void check_stamp(const std::string& path, const std::string& file) {
  const auto stamp = find_stamp(file);
  if (!stamp || std::memcmp(stamp->magic, "msieve", sizeof "msieve") != 0)
    throw ConfigError("plug-in " + path +
                      ": not a memsieve plug-in (no stamp); put MEMSIEVE_PLUGIN(function) into it, or build it anew");
  const MemsieveStamp ours = MEMSIEVE_STAMP_INITIALIZER;
  if (!same(*stamp, ours))
    throw ConfigError("plug-in " + path + ": built for " + describe(*stamp) + ", but this is " + describe(ours) +
                      "; rebuild the plug-in against this installation");
}

}  // namespace

void load_plugin(const std::string& path, FilterRegistry& registry, PluginTrust trust) {
  const std::string file = real_file(path);
  if (trust == PluginTrust::owners) {
    if (const std::string why = why_untrusted(file); !why.empty())
      throw ConfigError("plug-in " + path + ": " + why +
                        ", or, if you trust all of them, set sieve.plugins_of_anyone: true");
  }
  check_stamp(path, file);
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw ConfigError("plug-in " + path + ": cannot be opened: " + dlerror());
  using Register = void (*)(FilterRegistry*);
  const auto enter = reinterpret_cast<Register>(dlsym(library, "memsieve_plugin_register"));
  if (enter == nullptr)
    throw ConfigError("plug-in " + path + ": no memsieve_plugin_register; use MEMSIEVE_PLUGIN(function)");
  try {
    enter(&registry);
  } catch (const std::exception& error) {
    throw ConfigError("plug-in " + path + ": " + one_line(error));
  }
}

PluginsNamed plugins_named(const std::string& yaml, const std::string& source,
                           const std::vector<std::string>& overrides) {
  PluginsNamed named{peek_texts(yaml, source, "sieve.plugins", overrides), PluginTrust::owners};
  // What is neither true nor false is refused, with its place, when the whole schema is known.
  bool anyone = false;
  for (const auto& text : peek_texts(yaml, source, "sieve.plugins_of_anyone", overrides))
    if (YAML::convert<bool>::decode(YAML::Node(text), anyone) && anyone) named.trust = PluginTrust::anyone;
  return named;
}

void load_plugins(const PluginsNamed& named, FilterRegistry& registry) {
  for (const auto& path : named.paths) load_plugin(path, registry, named.trust);
}

}  // namespace memsieve
