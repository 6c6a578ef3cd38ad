#pragma once
// SIGTERM and SIGINT ask the run to stop after the current step.

namespace memsieve::runtime {

/// From now on the first such signals only set a flag; the third ends the process at once.
void catch_stop_signals();
bool stop_requested();
/// For tests: as if a signal had come (true), or as if none had (false).
void request_stop(bool value);

}  // namespace memsieve::runtime
