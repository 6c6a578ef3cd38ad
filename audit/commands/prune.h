#pragma once
// Zeroing the weights that memorised prompts or a concept need.

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

namespace memsieve::audit {

void add_prune_options(Options& options);

/// COLLECTIVE. Scores the feed-forwards' weights on the prompts, writes OUT/pruned (unet/ and scheduler/) without the
/// highest, and checks whether the prompts' pictures are gone and whether they come back (check_pictures, in OUT/before
/// and OUT/after). Throws ConfigError, DataError, NonFiniteError.
ExitCode prune(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
