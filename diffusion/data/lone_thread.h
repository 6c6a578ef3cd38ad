#pragma once

namespace memsieve::diffusion {

/// From here on, operators that the calling thread runs on the CPU do not spread over other threads. For threads beside
/// the training thread: a second pool of OpenMP threads would outnumber the cores, and OpenMP's workers then sleep
/// after every operator, instead of waiting for the next: a step on the CPU takes 1.4 times as long.
void compute_on_this_thread_alone();

}  // namespace memsieve::diffusion
