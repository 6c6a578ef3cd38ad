#pragma once
// The training run: start, steps, validation, drawing, checkpoints, end.

#include <trainer/config/train_config.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>
#include <trainer/trainer_rooms.h>

namespace memsieve::trainer {

/// COLLECTIVE. Trains to the end (kDone) or until a rank gets SIGTERM or SIGINT; then writes a checkpoint (kStopped).
/// With `dry`, builds everything, says what would be done and returns. Throws memsieve's errors.
ExitCode train(const TrainConfig& config, Group& group, bool dry);

}  // namespace memsieve::trainer
