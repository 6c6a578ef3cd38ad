#pragma once
// MemBench's protocol: any checkpoints and mitigations on trigger prompts and on general ones.

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_benchmark_options(Options& options);

/// COLLECTIVE. Draws trigger prompts and general ones with every checkpoint by every method, measures the drawings and
/// writes a table (audit/measure/benchmark_table.h). One checkpoint is in memory at a time. Throws ConfigError,
/// DataError, NonFiniteError.
ExitCode benchmark(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
