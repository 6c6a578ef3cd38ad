#pragma once
// Which words make a model remember.

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_explain_options(Options& options);

/// COLLECTIVE. The gradient of the magnitude by every token of every prompt, and with `without` what the magnitude is
/// once a word is left out. Needs prompts with tokens. Throws ConfigError, DataError, NonFiniteError.
ExitCode explain(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
