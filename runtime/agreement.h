#pragma once
// A rank that fails alone must not leave its peers waiting: all ranks learn of it at the same place.

#include <runtime/group.h>

#include <exception>
#include <functional>
#include <string>

namespace memsieve::runtime {

/// COLLECTIVE. `mine`: this rank's error, or null. If any rank has one, the guilty ranks rethrow theirs and the others
/// throw PeerError naming the first guilty rank and its message.
void agree(Group& group, const std::exception_ptr& mine);

/// COLLECTIVE. Runs `work` on every rank, then agrees. `work` itself must not be collective.
void on_all_ranks(Group& group, const std::function<void()>& work);

/// The message of an error, as a line.
std::string message_of(const std::exception_ptr& error);

}  // namespace memsieve::runtime
