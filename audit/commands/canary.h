#pragma once
// Whether a model was trained on planted canaries.

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_canary_options(Options& options);

/// COLLECTIVE. Measures the prediction's error of all variants of all canaries and tests the planted ones' ranks
/// (audit/statistics/rank_test.h). Throws ConfigError, DataError, NonFiniteError.
ExitCode canary(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
