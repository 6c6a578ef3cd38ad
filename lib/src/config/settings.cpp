#include <memsieve/detail/printable.h>
#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <memsieve/schema.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

#include "config/settings_tree.h"
#include "config/settings_values.h"

namespace memsieve {

namespace {

void check_keys(const Source& source, const std::string& prefix, const YAML::Node& yaml, const Schema::Node& schema) {
  std::vector<std::string> names;
  for (const auto& option : schema.options) names.push_back(option.name);
  std::map<std::string, int> seen;
  for (const auto& entry : yaml) {
    if (!entry.first.IsScalar() && !entry.first.IsNull())
      source.fail(prefix + "?", entry.first, "a list or mapping cannot be a key; write plain text");
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

void apply_override(const YAML::Node& root, const std::string& text, Source& source) {
  const std::string said = "--set " + detail::printable(text);
  const auto equals = text.find('=');
  if (equals == std::string::npos || equals == 0) throw ConfigError(said + ": expected key.subkey=value");
  const std::string path = text.substr(0, equals);
  YAML::Node value = parse_yaml(text.substr(equals + 1), said);
  YAML::Node node = root;
  size_t begin = 0;
  for (size_t dot = path.find('.'); dot != std::string::npos; begin = dot + 1, dot = path.find('.', begin)) {
    const std::string key = path.substr(begin, dot - begin);
    if (node[key].IsDefined() && !node[key].IsNull() && !node[key].IsMap()) {
      throw ConfigError(said + ": " + detail::printable(path.substr(0, dot)) + " is not a mapping");
    }
    if (!node[key].IsDefined() || node[key].IsNull()) node[key] = YAML::Node(YAML::NodeType::Map);
    node.reset(node[key]);
  }
  node[path.substr(begin)] = value;
  source.overridden[path] = said;
}

YAML::Node load(const std::string& text, const std::vector<std::string>& overrides, Source& source) {
  YAML::Node root = parse_yaml(text, source.file);
  if (!root.IsDefined() || root.IsNull()) root = YAML::Node(YAML::NodeType::Map);
  if (!root.IsMap()) throw ConfigError(source.file + ":1: expected a mapping of keys to values");
  for (const auto& text_override : overrides) apply_override(root, text_override, source);
  return root;
}

void emit_mapping(YAML::Emitter& out, const Settings::Tree& tree, const std::string& prefix, const Schema::Node& schema,
                  Keys keys) {
  out << YAML::BeginMap;
  for (const auto& option : schema.options) {
    if (option.incidental && keys == Keys::binding) continue;
    const std::string path = prefix + option.name;
    if (option.keys) {
      if (!tree.sections.count(path)) continue;
      out << YAML::Key << option.name << YAML::Value;
      emit_mapping(out, tree, path + ".", *option.keys, keys);
    } else {
      out << YAML::Key << option.name << YAML::Value;
      emit(out, tree.leaves.at(path).value, option.kind);
    }
  }
  out << YAML::EndMap;
}

}  // namespace

const Schema::Node& node_at(const Schema::Node& root, const std::string& prefix) {
  const Schema::Node* node = &root;
  std::stringstream keys(prefix);
  for (std::string key; std::getline(keys, key, '.');) node = node->find(key)->keys.get();
  return *node;
}

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

std::string Settings::yaml(Keys keys) const {
  YAML::Emitter out;
  out.SetDoublePrecision(15);
  emit_mapping(out, *tree_, prefix_, node_at(*tree_->schema, prefix_), keys);
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
  detail::require_regular_file<ConfigError>(path);
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
