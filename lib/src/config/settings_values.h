#pragma once
// Single values between YAML and a Schema's options. Private to the library.

#include <memsieve/schema.h>
#include <yaml-cpp/yaml.h>

#include <map>
#include <string>
#include <vector>

#include "config/schema_node.h"

namespace memsieve {

/// The name that a misspelt `word` was most likely meant to be, or "".
std::string closest(const std::string& word, const std::vector<std::string>& names);

/// "a, b, c".
std::string joined(const std::vector<std::string>& names);

/// A YAML mapping together with where its keys were set: a line of the file, or an override.
struct Source {
  std::string file;
  /// dotted path -> "--set a.b=c"
  std::map<std::string, std::string> overridden;

  /// Where the key at `path` was set, for messages.
  std::string place(const std::string& path, const YAML::Node& node) const;
  /// Throws ConfigError.
  [[noreturn]] void fail(const std::string& path, const YAML::Node& node, const std::string& what) const;
};

/// Throws ConfigError, with file and line, for text that is no YAML.
YAML::Node parse_yaml(const std::string& text, const std::string& source);

/// The value of a key that is no section. Throws ConfigError for another type, a value out of range
/// or an unknown choice.
Value read_value(const Source& source, const std::string& path, const YAML::Node& node, const Option& option);
/// The same for an option that is a list; a single scalar counts as a list of one.
Value read_list(const Source& source, const std::string& path, const YAML::Node& node, const Option& option);

/// Writes a value so that read_value gives it back.
void emit(YAML::Emitter& out, const Value& value, Kind kind);

}  // namespace memsieve
