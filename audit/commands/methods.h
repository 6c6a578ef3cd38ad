#pragma once
// What commands that draw by several methods are told.

#include <audit/config/audit_config.h>
#include <audit/measure/mitigation.h>

#include <vector>

namespace memsieve::audit {

/// methods, what they need, and copy_similarity.
void add_method_options(Options& options);

/// "none" and the methods asked for, in the order of mitigations(). Throws ConfigError for a name that is none.
std::vector<const Mitigation*> methods_of(const Settings& settings);

/// Throws ConfigError for options that a method asked for cannot draw with.
MitigationOptions mitigation_options(const AuditConfig& config);

}  // namespace memsieve::audit
