#pragma once
// The tensors that a resumed run needs, by name. Private to the library.

#include <ATen/core/Tensor.h>

#include <string>
#include <utility>
#include <vector>

namespace memsieve {

/// Names are those of Sieve::state(): older checkpoints hold them, so they stay.
using State = std::vector<std::pair<std::string, at::Tensor*>>;

}  // namespace memsieve
