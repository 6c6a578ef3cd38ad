#pragma once
// SIGTERM and SIGINT: at once while there is nothing to save, else after the current step.

namespace memsieve::runtime {

/// From now on SIGTERM and SIGINT end the process at once with exit code kStopped, whatever it waits for, except while
/// a GracefulStop lives.
void catch_stop_signals();

/// While it lives, such a signal only asks: stop_requested() becomes true. The run then has `seconds` for each next
/// note_progress(); if it comes to none, because a read or a peer hangs, the process ends at once all the same. So does
/// the third signal. One at a time.
class GracefulStop {
 public:
  explicit GracefulStop(double seconds);
  ~GracefulStop();
  GracefulStop(const GracefulStop&) = delete;
  GracefulStop& operator=(const GracefulStop&) = delete;
};

/// Whether a signal has come. Counts as progress: asked once a step.
bool stop_requested();
/// For what takes long between two steps: a batch of it is done.
void note_progress();

/// While it lives, nothing is said of how long the run may take: it writes a checkpoint.
class UnhurriedStop {
 public:
  UnhurriedStop();
  ~UnhurriedStop();
  UnhurriedStop(const UnhurriedStop&) = delete;
  UnhurriedStop& operator=(const UnhurriedStop&) = delete;
};

/// As if a signal had come, or none had: for tests.
void request_stop(bool value);

}  // namespace memsieve::runtime
