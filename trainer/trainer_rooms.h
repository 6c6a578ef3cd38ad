#pragma once
// The rooms below the trainer, whose names it uses as its own.

namespace memsieve {
namespace diffusion {}
namespace runtime {}
namespace trainer {
using namespace diffusion;
using namespace runtime;
}  // namespace trainer
}  // namespace memsieve
