#include <audit/config/command_options.h>
#include <memsieve/error.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <nlohmann/json.hpp>
#include <sstream>

namespace memsieve::audit {

namespace po = boost::program_options;

namespace {

std::string flag_name(std::string key) {
  std::replace(key.begin(), key.end(), '_', '-');
  return key;
}

std::string number_text(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

/// YAML's double-quoted style is JSON's, so that a path with a colon stays a path.
std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

Options& Options::flag(const std::string& name, const std::string& initial, const std::string& doc, Kind kind) {
  flags_.push_back({name, initial, doc, kind});
  return *this;
}

Options& Options::boolean(const std::string& name, bool initial, const std::string& doc) {
  schema_.boolean(name, initial, doc);
  return flag(name, initial ? "true" : "false", doc, Kind::boolean);
}
Options& Options::integer(const std::string& name, int64_t initial, int64_t low, int64_t high, const std::string& doc) {
  schema_.integer(name, initial, low, high, doc);
  return flag(name, std::to_string(initial), doc, Kind::number);
}
Options& Options::real(const std::string& name, double initial, double low, double high, const std::string& doc) {
  schema_.real(name, initial, low, high, doc);
  return flag(name, number_text(initial), doc, Kind::number);
}
Options& Options::text(const std::string& name, const std::string& initial, const std::string& doc) {
  schema_.text(name, initial, doc);
  return flag(name, initial, doc, Kind::text);
}
Options& Options::choice(const std::string& name, const std::string& initial, const std::vector<std::string>& choices,
                         const std::string& doc) {
  schema_.choice(name, initial, choices, doc);
  std::string known;
  for (const auto& choice : choices) known += (known.empty() ? "" : ", ") + choice;
  return flag(name, initial, "one of " + known + ". " + doc, Kind::text);
}
Options& Options::texts(const std::string& name, const std::vector<std::string>& initial, const std::string& doc) {
  schema_.texts(name, initial, doc);
  return flag(name, "", doc, Kind::texts);
}
Options& Options::incidental() {
  schema_.incidental();
  return *this;
}

std::string Options::help() const {
  po::options_description options;
  options.add_options()("config", po::value<std::string>()->value_name("FILE"),
                        "YAML file with the same keys, '_' in place of '-'");
  options.add_options()("set", po::value<std::string>()->value_name("a=b"), "overrides a key; may be repeated");
  for (const Flag& f : flags_) {
    const std::string initial = f.initial.empty() ? "" : " (default: " + f.initial + ")";
    const char* value = f.kind == Kind::boolean ? "[true|false]" : f.kind == Kind::number ? "N" : "TEXT";
    options.add_options()(flag_name(f.name).c_str(), po::value<std::string>()->value_name(value),
                          (f.doc + initial).c_str());
  }
  options.add_options()("help", "this text");
  std::ostringstream out;
  out << options;
  return out.str();
}

bool Options::asks_help(const std::vector<std::string>& words) {
  return std::find(words.begin(), words.end(), "--help") != words.end();
}

Settings Options::settings(const std::vector<std::string>& words, const std::string& command) const {
  po::options_description options;
  options.add_options()("config", po::value<std::string>());
  options.add_options()("set", po::value<std::vector<std::string>>()->composing());
  for (const Flag& f : flags_) {
    auto* value = po::value<std::vector<std::string>>();
    if (f.kind == Kind::boolean) value->implicit_value({"true"}, "true");
    options.add_options()(flag_name(f.name).c_str(), value);
  }
  po::variables_map given;
  try {
    po::store(po::command_line_parser(words).options(options).positional({}).run(), given);
    po::notify(given);
  } catch (const po::error& error) {
    throw ConfigError(std::string(error.what()) + "; see memsieve-audit " + command + " --help");
  }
  std::vector<std::string> overrides;
  for (const Flag& f : flags_) {
    if (given.count(flag_name(f.name)) == 0) continue;
    const auto& values = given[flag_name(f.name)].as<std::vector<std::string>>();
    if (f.kind != Kind::texts && values.size() > 1)
      throw ConfigError("--" + flag_name(f.name) + ": is given twice; keep one");
    std::string text;
    for (const auto& value : values) {
      const bool plain = f.kind == Kind::boolean || f.kind == Kind::number;
      text += (text.empty() ? "" : ", ") + (plain ? value : quoted(value));
    }
    overrides.push_back(f.name + "=" + (f.kind == Kind::texts ? "[" + text + "]" : text));
  }
  if (given.count("set") > 0) {
    const auto& set = given["set"].as<std::vector<std::string>>();
    overrides.insert(overrides.end(), set.begin(), set.end());
  }
  if (given.count("config") > 0) return resolve_file(given["config"].as<std::string>(), schema_, overrides);
  return resolve("", "command line", schema_, overrides);
}

}  // namespace memsieve::audit
