#pragma once
// Which prompts a model has memorised (Wen et al., ICLR 2024).

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_detect_options(Options& options);

/// COLLECTIVE. Draws the pictures of every prompt, and of every negative, and measures while it draws; then works out
/// scores. Throws ConfigError, DataError, NonFiniteError.
ExitCode detect(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
