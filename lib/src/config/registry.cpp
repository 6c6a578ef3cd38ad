#include <dlfcn.h>
#include <memsieve/error.h>
#include <memsieve/filter.h>
#include <memsieve/plugin.h>

#include <cstring>

#include "config/schema_node.h"

namespace memsieve {

void FilterRegistry::add(FilterEntry entry) {
  if (entry.name.empty() || !entry.make) throw ConfigError("a filter needs a name and a `make` function");
  if (entry.name.find('.') != std::string::npos)
    throw ConfigError("filter '" + entry.name + "': a name must not hold a dot; it is a YAML key");
  if (entry.options.node().find("weight") != nullptr)
    throw ConfigError("filter '" + entry.name + "': every filter has the option `weight` already; rename its own");
  if (find(entry.name) != nullptr) {
    throw ConfigError("filter '" + entry.name + "' is registered twice; give the plug-in's filter another name");
  }
  entries_.push_back(std::move(entry));
}

const FilterEntry* FilterRegistry::find(const std::string& name) const {
  for (const auto& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

void SignalRegistry::add(SignalEntry entry) {
  if (entry.name.empty() || !entry.measure) throw ConfigError("a signal needs a name and a `measure` function");
  if (find(entry.name) != nullptr)
    throw ConfigError("signal '" + entry.name + "' is registered twice; give the plug-in's signal another name");
  entries_.push_back(std::move(entry));
}

const SignalEntry* SignalRegistry::find(const std::string& name) const {
  for (const auto& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string SignalRegistry::names() const {
  std::string names;
  for (const auto& entry : entries_) names += (names.empty() ? "" : ", ") + entry.name;
  return names;
}

const at::Tensor& SignalView::signal(const std::string& name) const {
  const auto it = signals.find(name);
  if (it == signals.end()) throw Error("reads the signal '" + name + "' without naming it in needs().signals");
  return it->second;
}

namespace {

std::string describe(const MemsieveStamp& stamp) {
  const std::string torch(stamp.torch, strnlen(stamp.torch, sizeof stamp.torch));
  return "memsieve ABI " + std::to_string(stamp.memsieve_abi) + ", torch " + torch + ", C++ ABI " +
         std::to_string(stamp.gxx_abi) + "/" + std::to_string(stamp.cxx11_strings);
}

bool same(const MemsieveStamp& a, const MemsieveStamp& b) {
  return std::memcmp(a.magic, b.magic, sizeof a.magic) == 0 && a.memsieve_abi == b.memsieve_abi &&
         a.gxx_abi == b.gxx_abi && a.cxx11_strings == b.cxx11_strings &&
         std::strncmp(a.torch, b.torch, sizeof a.torch) == 0;
}

}  // namespace

void load_plugin(const std::string& path, FilterRegistry& registry) {
  // A bare name would be searched in the loader's paths; a plug-in is always a file the user named.
  const std::string file = path.find('/') == std::string::npos ? "./" + path : path;
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw ConfigError("plug-in " + path + ": cannot be opened: " + dlerror());
  const auto* stamp = static_cast<const MemsieveStamp*>(dlsym(library, "memsieve_plugin_stamp"));
  if (stamp == nullptr || std::memcmp(stamp->magic, "msieve", sizeof "msieve") != 0) {
    throw ConfigError("plug-in " + path + ": not a memsieve plug-in (no stamp); put MEMSIEVE_PLUGIN(function) into it");
  }
  const MemsieveStamp ours = MEMSIEVE_STAMP_INITIALIZER;
  if (!same(*stamp, ours)) {
    throw ConfigError("plug-in " + path + ": built for " + describe(*stamp) + ", but this is " + describe(ours) +
                      "; rebuild the plug-in against this installation");
  }
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

}  // namespace memsieve
