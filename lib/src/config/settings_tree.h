#pragma once
// What Settings are made of. Private to the library.

#include <memsieve/schema.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config/schema_node.h"

namespace memsieve {

/// Every leaf of a resolved configuration by its full dotted path.
struct Settings::Tree {
  struct Leaf {
    Value value;
    /// "file:line" or the override that set it; "file" for a default
    std::string where;
    bool set = false;
  };
  std::string source;
  std::map<std::string, Leaf> leaves;
  /// optional sections that are present, and all plain ones
  std::map<std::string, Leaf> sections;
  /// optional sections in the order of the YAML
  std::vector<std::string> order;
  std::shared_ptr<Schema::Node> schema;
};

/// The schema of the mapping at `prefix`: "" or dotted with a trailing dot.
const Schema::Node& node_at(const Schema::Node& root, const std::string& prefix);

}  // namespace memsieve
