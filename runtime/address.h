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

}  // namespace memsieve::runtime
