#include <diffusion/io/json_text.h>
#include <diffusion/io/safetensors_index.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace memsieve::diffusion {

namespace {

// A name in the folder itself: a path would read whatever file its author liked.
bool is_shard_name(const nlohmann::json& name) {
  if (!name.is_string()) return false;
  const auto text = name.get<std::string>();
  const auto odd = [](unsigned char c) { return c < 32 || c == '/' || c == '\\'; };
  return text.size() > 12 && text.ends_with(".safetensors") && std::none_of(text.begin(), text.end(), odd);
}

}  // namespace

std::set<std::string> parse_safetensors_index(const std::string& text, const std::string& where) {
  const auto json = json_object(text);
  if (!json.contains("weight_map") || !json["weight_map"].is_object())
    throw DataError(where + ": not a JSON object with a weight_map");
  std::set<std::string> shards;
  for (const auto& [tensor, name] : json["weight_map"].items()) {
    if (!is_shard_name(name))
      throw DataError(where + ": tensor " + detail::in_quotes(tensor) + ": " + detail::printable(json_text(name)) +
                      " is not the name of a .safetensors file");
    shards.insert(name.get<std::string>());
  }
  return shards;
}

}  // namespace memsieve::diffusion
