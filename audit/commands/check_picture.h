#pragma once
// Is a given picture in the model?

#include <audit/config/audit_config.h>
#include <audit/data/prompts.h>
#include <audit/output/measurements.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

#include <vector>

namespace memsieve::audit {

void add_check_picture_options(Options& options);

/// The rows that the option `rows` names, in its order; without any all prompts. Throws ConfigError for one that is no
/// number of a prompt.
std::vector<int64_t> chosen_rows(const Settings& settings, const Prompts& prompts);

/// COLLECTIVE. Measures the pictures of config.prompts and writes the results to config.out, as check_picture does;
/// returns the summary. `optimise` false: neither optimisation nor held-out pictures, only drawing with the captions.
Json check_pictures(const AuditConfig& config, bool optimise, Group& group);

/// COLLECTIVE. Measures how well every picture is predicted, optimises the caption's states on it, draws with the
/// caption and with those, and counts copies; held-out pictures alike. Throws ConfigError, DataError, NonFiniteError.
ExitCode check_picture(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
