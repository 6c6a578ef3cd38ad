#include <diffusion/io/json_text.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace memsieve::diffusion {

namespace {

bool deeper_than(int levels, const nlohmann::json& value) {
  if (!value.is_structured()) return false;
  return levels == 0 ||
         std::any_of(value.begin(), value.end(), [&](const auto& item) { return deeper_than(levels - 1, item); });
}

}  // namespace

nlohmann::json json_object(const std::string& text) {
  auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : nlohmann::json();
}

std::string json_text(const nlohmann::json& value) {
  if (deeper_than(16, value)) return "(nested too deeply)";
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace memsieve::diffusion
