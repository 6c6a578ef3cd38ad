#pragma once
// The rooms below the audit, whose names it uses as its own.

namespace memsieve {
namespace diffusion {}
namespace runtime {}
namespace audit {
using namespace diffusion;
using namespace runtime;
}  // namespace audit
}  // namespace memsieve
