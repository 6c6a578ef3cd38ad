#pragma once
// The index of a model whose weights lie in several safetensors files.

#include <set>
#include <string>

namespace memsieve::diffusion {

/// The files that the weight_map of a model.safetensors.index.json names; all are plain names, so that they lie in the
/// index's own folder. DataError, beginning with `where`, for what is no such index.
std::set<std::string> parse_safetensors_index(const std::string& json_text, const std::string& where);

}  // namespace memsieve::diffusion
