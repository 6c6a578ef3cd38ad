#pragma once
// The training run: start, steps, validation, drawing, checkpoints, end.

#include <trainer/config/train_config.h>
#include <runtime/group.h>
#include <trainer/rooms.h>

namespace memsieve::trainer {

enum ExitCode {
  kDone = 0,
  kOtherError = 1,
  kUsageError = 2,
  kDataFailure = 3,
  kPeerFailure = 4,
  kDiverged = 5,
  kStopped = 143
};

/// COLLECTIVE. Trains to the end (kDone) or until a rank gets SIGTERM or SIGINT; then writes a checkpoint (kStopped).
/// With `dry`, builds everything, says what would be done and returns. Throws memsieve's errors.
ExitCode train(const TrainConfig& config, Group& group, bool dry);

/// What lies behind an error: the cause of a PeerError where this rank is the guilty one, else `error` itself. Lives as
/// long as `error`.
const std::exception& root_cause(const std::exception& error);
/// The exit code for an error that `train` or what comes before it has thrown.
ExitCode exit_code_of(const std::exception& error);

}  // namespace memsieve::trainer
