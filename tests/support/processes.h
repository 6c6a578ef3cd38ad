#pragma once
// Starts ranks as real processes with a time limit, so that a hang is a failure.

#include <string>
#include <vector>

namespace processes {

struct Result {
  /// of each rank; 124 = still running at the time limit, and killed
  std::vector<int> exit_codes;
  /// what each rank wrote to stdout and stderr
  std::vector<std::string> outputs;
};

/// Runs this test binary's hidden case `scenario` once for each of `ranks` ranks on this machine, with RANK, WORLD_SIZE
/// and the like set, and `argument` in MEMSIEVE_ARGUMENT.
Result run(const std::string& scenario, int ranks, const std::string& argument = "", double seconds = 60);

/// In a scenario: the argument, and a folder that all ranks of this run share.
std::string argument();
std::string shared_folder();

}  // namespace processes
