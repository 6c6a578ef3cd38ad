#pragma once
// What every program on one rank or many does before and after its own work.

#include <runtime/exit_codes.h>
#include <runtime/group.h>

#include <optional>
#include <string>

namespace memsieve::runtime {

/// How a program wants to run.
struct ProgramOptions {
  /// "auto", "cpu" or "cuda": choose_device
  std::string device = "auto";
  GroupOptions group = {};
};

/// A program of which one process runs on each rank.
class Program {
 public:
  virtual ~Program() = default;
  /// Reads the command line. False: all that was asked for has been printed (--help). Throws ConfigError.
  virtual bool parse(int argc, char** argv) = 0;
  /// Reads what the command line names; nullopt = all that was asked for has been printed. Errors are told with the
  /// rank they happened on. Throws ConfigError and DataError.
  virtual std::optional<ProgramOptions> configure(const Launch& launch) = 0;
  /// COLLECTIVE. The work. The group's device is the current one. May throw anything.
  virtual ExitCode run(Group& group) = 0;
  /// What the work is, for the line that tells of a peer's failure: "training".
  virtual std::string work() const = 0;
};

/// Runs `program` where the environment says (launch_from_environment) and returns the exit code. An error becomes one
/// line of the log and its exit code; if there are peers, which may be gone or stuck in a collective, the process then
/// ends at once, without destructors that would wait for them. SIGTERM and SIGINT end it with exit code kStopped from
/// the first moment on, unless the program has a GracefulStop (stop.h).
int run_program(Program& program, int argc, char** argv);

}  // namespace memsieve::runtime
