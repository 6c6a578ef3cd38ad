#pragma once
// Starts ranks as real processes with a time limit, so that a hang is a failure.

#include <functional>
#include <string>
#include <vector>

namespace processes {

struct Result {
  /// of each rank; 124 = still running at the time limit, and killed
  std::vector<int> exit_codes;
  /// what each rank wrote to stdout and stderr
  std::vector<std::string> outputs;
};

/// What a rank does, by name. A REQUIRE that fails in it, or another exception, ends the rank with exit code 1; a CHECK
/// that fails is not noticed.
struct Scenario {
  Scenario(const std::string& name, std::function<void()> body);
};

/// Forks a process for each of `ranks` ranks, with RANK, WORLD_SIZE and the like set, and runs the scenario in each. No
/// new program is started: loading torch's libraries takes longer than most scenarios. The caller has no other threads.
Result run(const std::string& scenario, int ranks, const std::string& argument = "", double seconds = 60);

/// In a scenario: the argument, and a folder that all ranks of this run share.
std::string argument();
std::string shared_folder();

}  // namespace processes
