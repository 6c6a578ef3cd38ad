#pragma once
// All ranks must run the same sieve. Private to the library.

#include <memsieve/communicator.h>
#include <memsieve/sieve.h>

namespace memsieve {

/// COLLECTIVE. Throws ConfigError on all ranks, naming what differs and one rank, unless configuration, setup
/// and build agree.
void require_agreement(Communicator& communicator, const Settings& settings, const Setup& setup);

}  // namespace memsieve
