#pragma once
// How a program ends: what it tells of an error in one line, and its exit code.

#include <exception>
#include <string>

namespace memsieve::runtime {

enum ExitCode {
  kDone = 0,
  kOtherError = 1,
  kUsageError = 2,
  kDataFailure = 3,
  kPeerFailure = 4,
  kDiverged = 5,
  kStopped = 143
};

/// What lies behind an error: the cause of a PeerError where this rank is the guilty one, else `error` itself. Lives as
/// long as `error`.
const std::exception& root_cause(const std::exception& error);

/// The exit code for an error that a program has caught at its end.
ExitCode exit_code_of(const std::exception& error);

/// What to tell of such an error, in one line. memsieve's own errors are fit to be shown; what libraries throw names
/// their source files. `where` begins the line of what came from the network or a peer.
std::string error_line(const std::exception& error, const std::string& where);

}  // namespace memsieve::runtime
