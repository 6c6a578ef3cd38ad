#include <memsieve/error.h>
#include <memsieve/schema.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

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

namespace {

size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

std::string closest(const std::string& word, const std::vector<std::string>& names) {
  std::string best;
  size_t distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const auto& name : names) {
    const size_t d = edit_distance(word, name);
    if (d < distance) {
      distance = d;
      best = name;
    }
  }
  return best;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const auto& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

/// A YAML mapping together with where its keys were set: a line of the file, or an override.
struct Source {
  std::string file;
  /// dotted path -> "--set a.b=c"
  std::map<std::string, std::string> overridden;

  std::string place(const std::string& path, const YAML::Node& node) const {
    for (std::string p = path;; p = p.substr(0, p.rfind('.'))) {
      const auto it = overridden.find(p);
      if (it != overridden.end()) return it->second;
      if (p.find('.') == std::string::npos) break;
    }
    return node.Mark().is_null() ? file : file + ":" + std::to_string(node.Mark().line + 1);
  }
  [[noreturn]] void fail(const std::string& path, const YAML::Node& node, const std::string& what) const {
    throw ConfigError(place(path, node) + ": " + path + ": " + what);
  }
};

template <typename T>
T scalar(const Source& source, const std::string& path, const YAML::Node& node, const Option& option) {
  T value{};
  if (!node.IsScalar() || !YAML::convert<T>::decode(node, value)) {
    const std::string got = node.IsScalar() ? "'" + node.Scalar() + "'"
                            : node.IsNull() ? "nothing"
                                            : "a list or mapping";
    source.fail(path, node, std::string("expected ") + kind_name(option.kind) + ", got " + got);
  }
  return value;
}

void check_range(const Source& source, const std::string& path, const YAML::Node& node, const Option& option,
                 double value) {
  if (std::isfinite(value) && value >= option.low && value <= option.high) return;
  std::ostringstream message;
  message << node.Scalar() << " is out of range; it must lie in [" << option.low << ", " << option.high << "]";
  source.fail(path, node, message.str());
}

Value read_list(const Source& source, const std::string& path, const YAML::Node& node, const Option& option) {
  // One scalar stands for a list of one, so that `--set plugins=a.so` works.
  const std::vector<YAML::Node> items = node.IsSequence() ? std::vector<YAML::Node>(node.begin(), node.end())
                                        : node.IsNull()   ? std::vector<YAML::Node>{}
                                                          : std::vector<YAML::Node>{node};
  if (option.kind == Kind::texts) {
    std::vector<std::string> list;
    list.reserve(items.size());
    for (const auto& item : items) list.push_back(scalar<std::string>(source, path, item, option));
    return list;
  }
  std::vector<double> list;
  for (const auto& item : items) {
    if (option.kind == Kind::integers) {
      list.push_back(static_cast<double>(scalar<int64_t>(source, path, item, option)));
    } else {
      list.push_back(scalar<double>(source, path, item, option));
    }
  }
  return list;
}

Value read_value(const Source& source, const std::string& path, const YAML::Node& node, const Option& option) {
  switch (option.kind) {
    case Kind::boolean:
      return scalar<bool>(source, path, node, option);
    case Kind::integer: {
      const auto value = scalar<int64_t>(source, path, node, option);
      check_range(source, path, node, option, static_cast<double>(value));
      return value;
    }
    case Kind::real: {
      const auto value = scalar<double>(source, path, node, option);
      check_range(source, path, node, option, value);
      return value;
    }
    case Kind::choice: {
      auto value = scalar<std::string>(source, path, node, option);
      if (std::find(option.choices.begin(), option.choices.end(), value) == option.choices.end()) {
        const std::string guess = closest(value, option.choices);
        source.fail(path, node,
                    "unknown value '" + value + "'" +
                        (guess.empty() ? "; one of " + joined(option.choices) : "; did you mean '" + guess + "'?"));
      }
      return value;
    }
    case Kind::text:
      return node.IsNull() ? std::string() : scalar<std::string>(source, path, node, option);
    default:
      return read_list(source, path, node, option);
  }
}

void check_keys(const Source& source, const std::string& prefix, const YAML::Node& yaml, const Schema::Node& schema) {
  std::vector<std::string> names;
  for (const auto& option : schema.options) names.push_back(option.name);
  std::map<std::string, int> seen;
  for (const auto& entry : yaml) {
    const auto key = entry.first.as<std::string>();
    if (++seen[key] > 1) source.fail(prefix + key, entry.first, "key given twice; keep one");
    if (schema.find(key) != nullptr) continue;
    const std::string guess = closest(key, names);
    source.fail(prefix + key, entry.first,
                "unknown key; " + (guess.empty() ? "known keys: " + joined(names) : "did you mean '" + guess + "'?"));
  }
}

void resolve_into(Settings::Tree& tree, const Source& source, const std::string& prefix, const YAML::Node& yaml,
                  const Schema::Node& schema) {
  const bool given = yaml.IsDefined() && !yaml.IsNull();
  if (given && !yaml.IsMap())
    source.fail(prefix.substr(0, prefix.size() - (prefix.empty() ? 0 : 1)), yaml, "expected a mapping");
  if (given) {
    check_keys(source, prefix, yaml, schema);
    for (const auto& entry : yaml) {
      const auto key = entry.first.as<std::string>();
      if (schema.find(key)->kind == Kind::optional_section) tree.order.push_back(prefix + key);
    }
  }
  for (const auto& option : schema.options) {
    const std::string path = prefix + option.name;
    const YAML::Node node = given ? yaml[option.name] : YAML::Node(YAML::NodeType::Undefined);
    const std::string where = node.IsDefined() ? source.place(path, node) : source.file;
    if (option.keys) {
      if (option.kind == Kind::optional_section && !node.IsDefined()) continue;
      tree.sections[path] = {false, where, node.IsDefined()};
      resolve_into(tree, source, path + ".", node, *option.keys);
    } else {
      tree.leaves[path] = {node.IsDefined() ? read_value(source, path, node, option) : option.initial, where,
                           node.IsDefined()};
    }
  }
}

YAML::Node parse(const std::string& text, const std::string& source) {
  try {
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw ConfigError(source + ":" + std::to_string(error.mark.line + 1) + ": not valid YAML: " + error.msg);
  }
}

void apply_override(const YAML::Node& root, const std::string& text, Source& source) {
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) throw ConfigError("--set " + text + ": expected key.subkey=value");
  const std::string path = text.substr(0, equals);
  YAML::Node value = parse(text.substr(equals + 1), "--set " + text);
  YAML::Node node = root;
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; begin = dot + 1, dot = path.find('.', begin)) {
    const std::string key = path.substr(begin, dot - begin);
    if (node[key].IsDefined() && !node[key].IsNull() && !node[key].IsMap()) {
      throw ConfigError("--set " + text + ": " + path.substr(0, dot) + " is not a mapping");
    }
    if (!node[key].IsDefined() || node[key].IsNull()) node[key] = YAML::Node(YAML::NodeType::Map);
    node.reset(node[key]);
  }
  node[path.substr(begin)] = value;
  source.overridden[path] = "--set " + text;
}

YAML::Node load(const std::string& text, const std::vector<std::string>& overrides, Source& source) {
  YAML::Node root = parse(text, source.file);
  if (!root.IsDefined() || root.IsNull()) root = YAML::Node(YAML::NodeType::Map);
  if (!root.IsMap()) throw ConfigError(source.file + ":1: expected a mapping of keys to values");
  for (const auto& text_override : overrides) apply_override(root, text_override, source);
  return root;
}

void emit(YAML::Emitter& out, const Value& value, Kind kind) {
  if (const auto* b = std::get_if<bool>(&value)) {
    out << *b;
  } else if (const auto* i = std::get_if<int64_t>(&value)) {
    out << *i;
  } else if (const auto* d = std::get_if<double>(&value)) {
    out << *d;
  } else if (const auto* s = std::get_if<std::string>(&value)) {
    out << (s->empty() ? YAML::DoubleQuoted : YAML::Auto) << *s;
  } else if (const auto* list = std::get_if<std::vector<double>>(&value)) {
    out << YAML::Flow << YAML::BeginSeq;
    for (double item : *list) {
      if (kind == Kind::integers) {
        out << static_cast<int64_t>(item);
      } else {
        out << item;
      }
    }
    out << YAML::EndSeq;
  } else {
    out << YAML::Flow << std::get<std::vector<std::string>>(value);
  }
}

void emit_mapping(YAML::Emitter& out, const Settings::Tree& tree, const std::string& prefix,
                  const Schema::Node& schema) {
  out << YAML::BeginMap;
  for (const auto& option : schema.options) {
    const std::string path = prefix + option.name;
    if (option.keys) {
      if (!tree.sections.count(path)) continue;
      out << YAML::Key << option.name << YAML::Value;
      emit_mapping(out, tree, path + ".", *option.keys);
    } else {
      out << YAML::Key << option.name << YAML::Value;
      emit(out, tree.leaves.at(path).value, option.kind);
    }
  }
  out << YAML::EndMap;
}

const Schema::Node& node_at(const Schema::Node& root, const std::string& prefix) {
  const Schema::Node* node = &root;
  std::stringstream keys(prefix);
  for (std::string key; std::getline(keys, key, '.');) node = node->find(key)->keys.get();
  return *node;
}

}  // namespace

const Value& Settings::at(const std::string& path) const {
  const auto it = tree_->leaves.find(prefix_ + path);
  if (it == tree_->leaves.end()) throw std::logic_error("no such option: " + prefix_ + path);
  return it->second.value;
}

bool Settings::boolean(const std::string& path) const {
  return std::get<bool>(at(path));
}
int64_t Settings::integer(const std::string& path) const {
  return std::get<int64_t>(at(path));
}
double Settings::real(const std::string& path) const {
  return std::get<double>(at(path));
}
const std::string& Settings::text(const std::string& path) const {
  return std::get<std::string>(at(path));
}
std::vector<double> Settings::reals(const std::string& path) const {
  return std::get<std::vector<double>>(at(path));
}
std::vector<int64_t> Settings::integers(const std::string& path) const {
  const auto list = reals(path);
  return {list.begin(), list.end()};
}
std::vector<std::string> Settings::texts(const std::string& path) const {
  return std::get<std::vector<std::string>>(at(path));
}

bool Settings::has(const std::string& path) const {
  const auto section = tree_->sections.find(prefix_ + path);
  if (section != tree_->sections.end()) return section->second.set;
  const auto leaf = tree_->leaves.find(prefix_ + path);
  return leaf != tree_->leaves.end() && leaf->second.set;
}

Settings Settings::section(const std::string& path) const {
  if (!tree_->sections.count(prefix_ + path)) throw std::logic_error("no such section: " + prefix_ + path);
  Settings below = *this;
  below.prefix_ = prefix_ + path + ".";
  return below;
}

std::vector<std::string> Settings::present() const {
  std::vector<std::string> names;
  for (const auto& path : tree_->order) {
    if (path.compare(0, prefix_.size(), prefix_) != 0) continue;
    const std::string rest = path.substr(prefix_.size());
    if (rest.find('.') == std::string::npos) names.push_back(rest);
  }
  return names;
}

std::string Settings::where(const std::string& path) const {
  const std::string full = prefix_ + path;
  for (const auto* table : {&tree_->leaves, &tree_->sections}) {
    const auto it = table->find(full);
    if (it != table->end()) return it->second.where + ": " + full;
  }
  return tree_->source + ": " + full;
}

std::string Settings::yaml() const {
  YAML::Emitter out;
  out.SetDoublePrecision(15);
  emit_mapping(out, *tree_, prefix_, node_at(*tree_->schema, prefix_));
  return std::string(out.c_str()) + "\n";
}

Settings resolve(const std::string& yaml_text, const std::string& source, const Schema& schema,
                 const std::vector<std::string>& overrides) {
  Source from{source, {}};
  const YAML::Node root = load(yaml_text, overrides, from);
  auto tree = std::make_shared<Settings::Tree>();
  tree->source = source;
  tree->schema = std::make_shared<Schema::Node>(schema.node());
  resolve_into(*tree, from, "", root, schema.node());
  Settings settings;
  settings.tree_ = tree;
  return settings;
}

std::string read_text_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw ConfigError(path + ": cannot be read; check that the file exists and is readable");
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad() || text.fail()) throw ConfigError(path + ": cannot be read; it is empty or not a text file");
  return text.str();
}

Settings resolve_file(const std::string& path, const Schema& schema, const std::vector<std::string>& overrides) {
  return resolve(read_text_file(path), path, schema, overrides);
}

std::vector<std::string> peek_texts(const std::string& yaml_text, const std::string& source, const std::string& dotted,
                                    const std::vector<std::string>& overrides) {
  Source from{source, {}};
  YAML::Node node = load(yaml_text, overrides, from);
  std::stringstream keys(dotted);
  for (std::string key; std::getline(keys, key, '.');) {
    if (!node.IsMap() || !node[key].IsDefined()) return {};
    node.reset(node[key]);
  }
  const Option option{dotted, Kind::texts, std::vector<std::string>{}, ""};
  return std::get<std::vector<std::string>>(read_list(from, dotted, node, option));
}

}  // namespace memsieve
