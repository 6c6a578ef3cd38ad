#pragma once
// The commands of memsieve-audit: a pair of files beside this one and one line of the table (command.cpp) each.

#include <audit/config/audit_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

#include <string>
#include <vector>

namespace memsieve::audit {

struct Command {
  std::string name;
  /// one line, for --help
  std::string summary;
  /// what it adds to add_common_options
  void (*add_options)(Options& options);
  /// COLLECTIVE. May throw anything.
  ExitCode (*run)(const AuditConfig& config, Group& group);
  Asks asks = Asks::drawings;
};

const std::vector<Command>& commands();

/// The command of that name. Throws ConfigError that lists them.
const Command& find_command(const std::string& name);

/// All options of a command.
Options options_of(const Command& command);

}  // namespace memsieve::audit
