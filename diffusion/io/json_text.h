#pragma once
// JSON of somebody else's: read, and in messages.

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace memsieve::diffusion {

/// The object that a text holds; null if it holds none.
nlohmann::json json_object(const std::string& text);

/// A value on one line, whatever bytes it holds; not one that is nested so deeply that writing it out could exhaust
/// the stack.
std::string json_text(const nlohmann::json& value);

}  // namespace memsieve::diffusion
