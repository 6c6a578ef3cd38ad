#pragma once
// All ranks must run the same sieve. Private to the library.

#include <memsieve/communicator.h>
#include <memsieve/sieve.h>

namespace memsieve {

/// What one rank brings to the agreement: what it runs, or why it cannot.
struct Fingerprint {
  double configuration = 0, setup = 0, build = 0;
  /// "" = fine
  std::string error;
};
Fingerprint fingerprint(const Settings& settings, const Setup& setup);

/// COLLECTIVE: one gather. Throws PeerError on ranks that are fine if another is not, and ConfigError on all ranks,
/// naming what differs and one rank, unless configuration, setup and build agree.
void require_agreement(Communicator& communicator, const Fingerprint& mine, at::Device device);

}  // namespace memsieve
