#pragma once
// Drawing so that a memorised picture does not come out: what it helps, and what it costs.

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_mitigate_options(Options& options);

/// COLLECTIVE. Draws every prompt as it is and by each method, from the same noise, and compares. Throws ConfigError,
/// DataError, NonFiniteError.
ExitCode mitigate(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
