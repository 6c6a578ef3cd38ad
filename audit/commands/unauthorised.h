#pragma once
// Whether what a model draws shows that it was trained on coated pictures (DIAGNOSIS, Wang et al., ICLR 2024).

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_unauthorised_options(Options& options);

/// COLLECTIVE. Asks no model: it tests what was measured in its drawings, by `memsieve coating` or by a classifier
/// that somebody else ran. Throws ConfigError, DataError.
ExitCode unauthorised(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
