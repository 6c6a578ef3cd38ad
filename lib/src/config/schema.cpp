#include <memsieve/error.h>
#include <memsieve/schema.h>

#include <algorithm>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "config/schema_node.h"

namespace memsieve {

namespace {

std::string number(double value) {
  std::ostringstream out;
  out.precision(15);
  out << value;
  return out.str();
}

std::string show(const Value& value) {
  struct Visitor {
    std::string operator()(bool b) const { return b ? "true" : "false"; }
    std::string operator()(int64_t i) const { return std::to_string(i); }
    std::string operator()(double d) const { return number(d); }
    std::string operator()(const std::string& s) const { return s.empty() ? "\"\"" : s; }
    std::string operator()(const std::vector<double>& list) const {
      std::string out;
      for (double d : list) out += (out.empty() ? "" : ", ") + number(d);
      return "[" + out + "]";
    }
    std::string operator()(const std::vector<std::string>& list) const {
      std::string out;
      for (const auto& s : list) out += (out.empty() ? "" : ", ") + s;
      return "[" + out + "]";
    }
  };
  return std::visit(Visitor{}, value);
}

std::string range(const Option& option) {
  if (option.kind == Kind::choice) {
    std::string out;
    for (const auto& c : option.choices) out += (out.empty() ? "`" : ", `") + c + "`";
    return out;
  }
  if (option.kind != Kind::integer && option.kind != Kind::real) return kind_name(option.kind);
  const std::string low = option.low <= -std::numeric_limits<double>::max() ? "" : number(option.low);
  const double unlimited = option.kind == Kind::integer ? 0x1p63 : std::numeric_limits<double>::max();
  const std::string high = option.high >= unlimited ? "" : number(option.high);
  std::string kind = kind_name(option.kind);
  if (low.empty() && high.empty()) return kind;
  if (high.empty()) return kind + " ≥ " + low;
  if (low.empty()) return kind + " ≤ " + high;
  return kind + " " + low + " … " + high;
}

}  // namespace

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::boolean:
      return "true or false";
    case Kind::integer:
      return "integer";
    case Kind::real:
      return "number";
    case Kind::text:
      return "text";
    case Kind::choice:
      return "choice";
    case Kind::reals:
      return "list of numbers";
    case Kind::integers:
      return "list of integers";
    case Kind::texts:
      return "list of texts";
    case Kind::section:
    case Kind::optional_section:
      return "mapping";
  }
  return "?";
}

Schema::Schema() : node_(std::make_shared<Node>()) {}
Schema::Schema(const Schema& other) : node_(std::make_shared<Node>(*other.node_)) {}
Schema::Schema(Schema&&) noexcept = default;
Schema& Schema::operator=(const Schema& other) {
  if (this != &other) node_ = std::make_shared<Node>(*other.node_);
  return *this;
}
Schema& Schema::operator=(Schema&&) noexcept = default;
Schema::~Schema() = default;

Schema& Schema::boolean(const std::string& name, bool initial, const std::string& doc) {
  node_->options.push_back({name, Kind::boolean, initial, doc});
  return *this;
}
Schema& Schema::integer(const std::string& name, int64_t initial, int64_t low, int64_t high, const std::string& doc) {
  node_->options.push_back({name, Kind::integer, initial, doc, static_cast<double>(low), static_cast<double>(high)});
  return *this;
}
Schema& Schema::real(const std::string& name, double initial, double low, double high, const std::string& doc) {
  node_->options.push_back({name, Kind::real, initial, doc, low, high});
  return *this;
}
Schema& Schema::text(const std::string& name, const std::string& initial, const std::string& doc) {
  node_->options.push_back({name, Kind::text, initial, doc});
  return *this;
}
Schema& Schema::choice(const std::string& name, const std::string& initial, const std::vector<std::string>& choices,
                       const std::string& doc) {
  node_->options.push_back({name, Kind::choice, initial, doc, 0, 0, choices});
  return *this;
}
Schema& Schema::reals(const std::string& name, const std::vector<double>& initial, const std::string& doc) {
  node_->options.push_back({name, Kind::reals, initial, doc});
  return *this;
}
Schema& Schema::integers(const std::string& name, const std::vector<int64_t>& initial, const std::string& doc) {
  node_->options.push_back({name, Kind::integers, std::vector<double>(initial.begin(), initial.end()), doc});
  return *this;
}
Schema& Schema::texts(const std::string& name, const std::vector<std::string>& initial, const std::string& doc) {
  node_->options.push_back({name, Kind::texts, initial, doc});
  return *this;
}
Schema& Schema::section(const std::string& name, const Schema& keys, const std::string& doc) {
  node_->options.push_back({name, Kind::section, false, doc, 0, 0, {}, std::make_shared<Node>(*keys.node_)});
  return *this;
}
Schema& Schema::optional_section(const std::string& name, const Schema& keys, const std::string& doc) {
  node_->options.push_back({name, Kind::optional_section, false, doc, 0, 0, {}, std::make_shared<Node>(*keys.node_)});
  return *this;
}

Schema& Schema::incidental() {
  if (node_->options.empty()) throw std::logic_error("Schema::incidental: no key is declared yet");
  node_->options.back().incidental = true;
  return *this;
}

static void write_markdown(const Schema::Node& node, const std::string& path, std::ostream& out) {
  bool table = false;
  for (const auto& option : node.options) {
    if (option.keys) continue;
    if (!table) {
      if (!path.empty()) out << "### `" << path << "`\n\n";
      out << "| key | default | values | meaning |\n| --- | --- | --- | --- |\n";
      table = true;
    }
    out << "| `" << option.name << "` | `" << show(option.initial) << "` | " << range(option) << " | " << option.doc
        << " |\n";
  }
  if (table) out << "\n";
  for (const auto& option : node.options) {
    if (!option.keys) continue;
    const std::string below = path.empty() ? option.name : path + "." + option.name;
    out << "**`" << below << "`** " << (option.kind == Kind::optional_section ? "(only if named) " : "") << option.doc
        << "\n\n";
    write_markdown(*option.keys, below, out);
  }
}

std::string Schema::markdown(const std::string& path) const {
  std::ostringstream out;
  write_markdown(*node_, path, out);
  return out.str();
}

}  // namespace memsieve
