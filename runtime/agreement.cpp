#include <memsieve/error.h>
#include <runtime/agreement.h>

namespace memsieve::runtime {

std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return one_line(e);
  } catch (...) {
    return "unknown error";
  }
}

void agree(Group& group, const std::exception_ptr& mine) {
  if (!group.any(mine != nullptr)) return;
  // Only now, and on every rank, is it known that something went wrong: who says what?
  std::string first;
  for (int rank = 0; rank < group.world_size(); ++rank) {
    const bool me = rank == group.rank() && mine;
    std::string text;
    if (me) text.append("!").append(message_of(mine));
    text = group.broadcast(text, rank);
    if (first.empty() && !text.empty()) first = "rank " + std::to_string(rank) + " failed: " + text.substr(1);
  }
  if (mine) std::rethrow_exception(mine);
  throw PeerError(first);
}

void on_all_ranks(Group& group, const std::function<void()>& work) {
  std::exception_ptr mine;
  try {
    work();
  } catch (...) {
    mine = std::current_exception();
  }
  agree(group, mine);
}

}  // namespace memsieve::runtime
