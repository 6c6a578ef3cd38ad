#pragma once
// The layers of a model by name.

#include <torch/nn/module.h>

#include <map>
#include <string>

namespace memsieve::audit {

/// The dotted names of all layers of one kind: "mid_block.attentions.0.transformer_blocks.0.ff".
template <class Layer>
std::map<const Layer*, std::string> layer_names(torch::nn::Module& model) {
  std::map<const Layer*, std::string> names;
  for (const auto& item : model.named_modules(/*name_prefix=*/"", /*include_self=*/false))
    if (const auto* layer = dynamic_cast<const Layer*>(item.value().get())) names[layer] = item.key();
  return names;
}

}  // namespace memsieve::audit
