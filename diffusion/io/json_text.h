#pragma once
// JSON of somebody else's, in messages.

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace memsieve::diffusion {

/// A value on one line, whatever bytes it holds; not one that is nested so deeply that writing it out could exhaust
/// the stack.
std::string json_text(const nlohmann::json& value);

}  // namespace memsieve::diffusion
