#include <memsieve/detail/printable.h>
#include <memsieve/error.h>

#include "config/settings_tree.h"
#include "config/settings_values.h"

namespace memsieve {

namespace {

/// As yaml() would write it: a number may have more digits than the text it was saved in.
std::string text_of(const Value& value, Kind kind) {
  YAML::Emitter out;
  out.SetDoublePrecision(15);
  emit(out, value, kind);
  return out.c_str();
}

std::string raw(const YAML::Node& node) {
  YAML::Emitter out;
  out << YAML::Flow << node;
  return out.c_str();
}

class Comparison {
 public:
  Comparison(const Settings::Tree& now, const std::string& source, Keys keys)
      : now_(now), source_{source, {}}, keys_(keys) {}

  std::optional<SettingsDifference> mapping(const Schema::Node& schema, const std::string& prefix,
                                            const YAML::Node& then) const {
    const bool given = then.IsDefined() && !then.IsNull();
    for (const auto& option : schema.options) {
      if (option.incidental && keys_ == Keys::binding) continue;
      const YAML::Node node = given ? then[option.name] : YAML::Node(YAML::NodeType::Undefined);
      auto found = option.keys ? section(option, prefix + option.name, node) : leaf(option, prefix + option.name, node);
      if (found) return found;
    }
    if (!given) return std::nullopt;
    for (const auto& entry : then) {
      const std::string key = entry.first.IsScalar() ? entry.first.Scalar() : raw(entry.first);
      if (schema.find(key) == nullptr)
        return SettingsDifference{prefix + key, "(this version has no such key)", raw(entry.second)};
    }
    return std::nullopt;
  }

 private:
  std::optional<SettingsDifference> section(const Option& option, const std::string& path,
                                            const YAML::Node& then) const {
    const bool here = now_.sections.count(path) > 0;
    const bool there = then.IsDefined() || option.kind == Kind::section;
    if (here != there) {
      const auto said = [](bool present) { return present ? "(given)" : "(not given)"; };
      return SettingsDifference{path, said(here), said(there)};
    }
    if (!here) return std::nullopt;
    if (then.IsDefined() && !then.IsNull() && !then.IsMap()) return SettingsDifference{path, "(given)", raw(then)};
    return mapping(*option.keys, path + ".", then);
  }

  std::optional<SettingsDifference> leaf(const Option& option, const std::string& path, const YAML::Node& then) const {
    const std::string mine = text_of(now_.leaves.at(path).value, option.kind);
    std::string theirs;
    try {
      theirs = text_of(then.IsDefined() ? read_value(source_, path, then, option) : option.initial, option.kind);
    } catch (const ConfigError&) {  // a value that was good then and is not now
      return SettingsDifference{path, mine, raw(then)};
    }
    return mine == theirs ? std::nullopt : std::optional(SettingsDifference{path, mine, theirs});
  }

  const Settings::Tree& now_;
  Source source_;
  Keys keys_;
};

}  // namespace

std::string SettingsDifference::line() const {
  constexpr size_t kLongest = 2000;
  return detail::printable("`" + path + ": " + now + "` / `" + path + ": " + then + "`", kLongest);
}

std::optional<SettingsDifference> Settings::difference_from(const std::string& saved_yaml, const std::string& source,
                                                            Keys keys) const {
  const YAML::Node then = parse_yaml(saved_yaml, source);
  if (then.IsDefined() && !then.IsNull() && !then.IsMap())
    throw ConfigError(source + ": expected a mapping of keys to values");
  return Comparison(*tree_, source, keys).mapping(node_at(*tree_->schema, prefix_), prefix_, then);
}

}  // namespace memsieve
