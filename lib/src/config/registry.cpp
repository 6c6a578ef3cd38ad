#include <memsieve/error.h>
#include <memsieve/filter.h>

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

}  // namespace memsieve
