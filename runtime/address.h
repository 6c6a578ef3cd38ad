#pragma once

#include <runtime/launch.h>

#include <optional>
#include <string>

namespace memsieve::runtime {

/// The address of this machine from which packets to `host` would leave; nullopt if it cannot be told. Sends nothing.
std::optional<std::string> local_address_toward(const std::string& host);

/// Where the ranks of other machines can reach this one: its address toward the machine of rank 0, or, on that machine
/// itself, whose own name often stands for a loopback address, toward any other. nullopt if there is none but loopback.
std::optional<std::string> reachable_address(const Launch& launch);

/// Where the ranks on rank 0's machine meet, rank 0 to listen there: the loopback address if all ranks are on this
/// machine, else MASTER_ADDR where it is an address of this machine other than loopback, else that of the interface
/// which GLOO_SOCKET_IFNAME names, else reachable_address(), else any of this machine. Numeric.
std::string listening_address(const Launch& launch);

/// Where this rank finds rank 0: listening_address() on its machine, else MASTER_ADDR as it is.
std::string store_address(const Launch& launch);

/// A TCP socket bound to `address` (numeric) and `port` (0 = any free one), not listening yet; its owner closes it.
/// -1 and errno if that fails.
int bound_socket(const std::string& address, int port);

}  // namespace memsieve::runtime
