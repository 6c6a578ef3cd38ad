#pragma once
// Meeting the peers: the store, and the certainty that the right processes stand at it.

#include <c10/util/intrusive_ptr.h>
#include <runtime/launch.h>

namespace c10d {
class Store;
}

namespace memsieve::runtime {

/// COLLECTIVE. Rank 0 serves a TCPStore (unless torchrun's agent does), all connect, each claims its rank and waits for
/// the others. Throws ConfigError if the port belongs to something else, a rank is claimed twice or world sizes differ;
/// PeerError if the store or a rank does not come within `seconds`.
c10::intrusive_ptr<c10d::Store> meet(const Launch& launch, double seconds);

}  // namespace memsieve::runtime
