#include <memsieve/detail/printable.h>
#include <memsieve/error.h>
#include <diffusion/io/json_text.h>
#include <diffusion/models/common/json_reader.h>

#include <algorithm>
#include <sstream>

namespace memsieve::diffusion {

void fail_config(const std::string& where, const std::string& key, const nlohmann::json& value,
                 const std::string& why) {
  throw ConfigError(where + ": " + detail::printable(key) + ": " + detail::printable(json_text(value)) + ": " + why);
}

void check_parameter_count(const std::string& where, double at_least) {
  constexpr double most = 0x1p36;
  if (at_least <= most) return;
  std::ostringstream text;
  text << where << ": asks for a model of at least " << at_least << " parameters; at most " << most
       << " can be had, so its widths, kernels or numbers of layers are wrong";
  throw ConfigError(text.str());
}

JsonReader::JsonReader(const std::string& json_text, std::string where, const std::string& class_name)
    : object_(Json::parse(json_text, nullptr, false)), where_(std::move(where)) {
  if (object_.is_discarded() || !object_.is_object())
    throw ConfigError(where_ + ": not a JSON object; it must be the config.json of a " + class_name);
  const Json found = object_.value("_class_name", Json(class_name));
  if (found != class_name) fail_config(where_, "_class_name", found, "must be \"" + class_name + "\"");
}

const nlohmann::json* JsonReader::find(const std::string& key) {
  seen_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

int64_t JsonReader::integer(const std::string& key, const Json& value) const {
  constexpr uint64_t most = 65536;  // far above any real one; products of a few cannot overflow
  const bool fits = value.is_number_unsigned() && value != 0 && value.get<uint64_t>() <= most;
  if (!fits) fail_config(where_, key, value, "must be an integer from 1 to " + std::to_string(most));
  return value.get<int64_t>();
}

void JsonReader::read(const std::string& key, int64_t& out) {
  if (const Json* value = find(key)) out = integer(key, *value);
}

void JsonReader::read(const std::string& key, std::optional<int64_t>& out) {
  const Json* value = find(key);
  if (value != nullptr && !value->is_null()) out = integer(key, *value);
}

void JsonReader::read(const std::string& key, bool& out) {
  const Json* value = find(key);
  if (value == nullptr) return;
  if (!value->is_boolean() && !value->is_null()) fail_config(where_, key, *value, "must be true or false");
  out = value->is_boolean() && value->get<bool>();
}

void JsonReader::read(const std::string& key, double& out) {
  const Json* value = find(key);
  if (value == nullptr) return;
  if (!value->is_number()) fail_config(where_, key, *value, "must be a number");
  out = value->get<double>();
}

void JsonReader::read(const std::string& key, std::optional<double>& out) {
  const Json* value = find(key);
  if (value == nullptr || value->is_null()) return;
  out.emplace();
  read(key, *out);
}

void JsonReader::read(const std::string& key, std::string& out) {
  const Json* value = find(key);
  if (value == nullptr) return;
  if (!value->is_string()) fail_config(where_, key, *value, "must be a string");
  out = value->get<std::string>();
}

void JsonReader::read(const std::string& key, std::optional<std::string>& out) {
  const Json* value = find(key);
  if (value == nullptr || value->is_null()) return;
  out.emplace();
  read(key, *out);
}

void JsonReader::read(const std::string& key, std::vector<std::string>& out) {
  const Json* value = find(key);
  if (value == nullptr) return;
  const auto is_string = [](const Json& entry) { return entry.is_string(); };
  if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_string))
    fail_config(where_, key, *value, "must be a list of strings");
  out = value->get<std::vector<std::string>>();
}

void JsonReader::read(const std::string& key, Ints& out) {
  const Json* value = find(key);
  if (value == nullptr) return;
  if (!value->is_array()) fail_config(where_, key, *value, "must be a list of integers");
  out.clear();
  for (const Json& entry : *value) out.push_back(integer(key, entry));
}

void JsonReader::read_levels(const std::string& key, Ints& out, int64_t levels, int64_t otherwise) {
  out.assign(levels, otherwise);
  const Json* value = find(key);
  if (value == nullptr) return;
  if (!value->is_array()) return out.assign(levels, integer(key, *value));
  if (static_cast<int64_t>(value->size()) != levels)
    fail_config(where_, key, *value, "must be a number or " + std::to_string(levels) + " of them, one per level");
  read(key, out);
}

void JsonReader::read_size(const std::string& key, std::optional<Ints>& out) {
  const Json* value = find(key);
  if (value == nullptr || value->is_null()) return;
  if (!value->is_array()) {
    out = Ints{integer(key, *value)};
    return;
  }
  if (value->size() != 2) fail_config(where_, key, *value, "must be a number or [height, width]");
  out.emplace();
  read(key, *out);
}

void JsonReader::reject_the_rest(const UnusedFeatures& unused) const {
  for (const auto& [key, value] : object_.items()) {
    if (seen_.count(key) > 0 || key.rfind('_', 0) == 0) continue;
    const auto found = unused.find(key);
    if (found == unused.end()) fail_config(where_, key, value, "unknown key");
    const auto& allowed = found->second;
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
      fail_config(where_, key, value, "not supported; must be " + allowed.front().dump());
  }
}

}  // namespace memsieve::diffusion
