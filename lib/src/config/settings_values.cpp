#include "config/settings_values.h"

#include <memsieve/detail/printable.h>
#include <memsieve/error.h>

#include <algorithm>
#include <cmath>
#include <sstream>
#include <yaml-cpp/eventhandler.h>

namespace memsieve {

namespace {

constexpr size_t kLongestMessage = 2000;
/// Lists of integers are held as doubles, which tell these apart.
constexpr int64_t kExact = int64_t{1} << 53;

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

}  // namespace

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

std::string Source::place(const std::string& path, const YAML::Node& node) const {
  for (std::string p = path;; p = p.substr(0, p.rfind('.'))) {
    const auto it = overridden.find(p);
    if (it != overridden.end()) return it->second;
    if (p.find('.') == std::string::npos) break;
  }
  return node.Mark().is_null() ? file : file + ":" + std::to_string(node.Mark().line + 1);
}

void Source::fail(const std::string& path, const YAML::Node& node, const std::string& what) const {
  throw ConfigError(detail::printable(place(path, node) + ": " + path + ": " + what, kLongestMessage));
}

namespace {

template <typename T>
T scalar(const Source& source, const std::string& path, const YAML::Node& node, const Option& option) {
  T value{};
  if (!node.IsScalar() || !YAML::convert<T>::decode(node, value)) {
    const std::string got = node.IsScalar() ? detail::in_quotes(node.Scalar())
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
  message << detail::printable(node.Scalar()) << " is out of range; it must lie in [" << option.low << ", "
          << option.high << "]";
  source.fail(path, node, message.str());
}

}  // namespace

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
      const auto value = scalar<int64_t>(source, path, item, option);
      if (value < -kExact || value > kExact)
        source.fail(path, item, item.Scalar() + " is out of range; it must lie in [-2^53, 2^53]");
      list.push_back(static_cast<double>(value));
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
                    "unknown value " + detail::in_quotes(value) +
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

namespace {

/// Where the values of a text's first two documents begin.
class Documents final : public YAML::EventHandler {
 public:
  explicit Documents(const std::string& text) {
    std::istringstream input(text);
    YAML::Parser parser(input);
    // Never more: yaml-cpp 0.7 finds documents without end where a comma stands for a value, as in ", a".
    while (marks.size() < 2 && parser.HandleNextDocument(*this)) {
    }
  }
  std::vector<YAML::Mark> marks;

 private:
  using Mark = YAML::Mark;
  using Text = const std::string&;
  void note(const Mark& mark) {
    if (begins_) marks.push_back(mark);
    begins_ = false;
  }
  void OnDocumentStart(const Mark&) override { begins_ = true; }
  void OnDocumentEnd() override {}
  void OnNull(const Mark& mark, YAML::anchor_t) override { note(mark); }
  void OnAlias(const Mark& mark, YAML::anchor_t) override { note(mark); }
  void OnScalar(const Mark& mark, Text, YAML::anchor_t, Text) override { note(mark); }
  void OnSequenceStart(const Mark& mark, Text, YAML::anchor_t, YAML::EmitterStyle::value) override { note(mark); }
  void OnSequenceEnd() override {}
  void OnMapStart(const Mark& mark, Text, YAML::anchor_t, YAML::EmitterStyle::value) override { note(mark); }
  void OnMapEnd() override {}

  bool begins_ = false;
};

}  // namespace

YAML::Node parse_yaml(const std::string& text, const std::string& source) {
  try {
    const auto documents = Documents(text).marks;
    if (documents.size() < 2) return YAML::Load(text);
    throw ConfigError(source + ":" + std::to_string(documents[1].line + 1) +
                      ": a second YAML document; what `---` sets apart would be ignored, so keep one");
  } catch (const YAML::Exception& error) {
    throw ConfigError(source + ":" + std::to_string(error.mark.line + 1) +
                      ": not valid YAML: " + detail::printable(error.msg));
  }
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

}  // namespace memsieve
