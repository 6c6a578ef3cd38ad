#include <c10/util/Exception.h>
#include <memsieve/error.h>
#include <runtime/address.h>
#include <runtime/log.h>
#include <runtime/quiet_c10d.h>
#include <runtime/rendezvous.h>
#include <runtime/run_token.h>

#include <chrono>
#include <cerrno>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>
#include <vector>

namespace memsieve::runtime {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct Deadline {
  Clock::time_point at;
  double seconds;  // what the user allowed
};

std::string place(const Launch& launch) {
  return launch.master_addr + ":" + std::to_string(launch.master_port);
}

// One that no other process has, or has had.
std::string unique_name() {
  std::random_device random;
  return std::to_string(random()) + "-" + std::to_string(random());
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// TCPStore waits for ever for the greeting of a server that is none. So it is made in a thread, which is left behind in
// that case: the error ends the run anyway.
c10::intrusive_ptr<c10d::Store> construct(const std::string& host, const c10d::TCPStoreOptions& options) {
  using Store = c10::intrusive_ptr<c10d::Store>;
  auto made = std::make_shared<std::promise<Store>>();
  auto result = made->get_future();
  std::thread([made, host, options] {
    try {
      made->set_value(c10::make_intrusive<c10d::TCPStore>(host, options));
    } catch (...) {
      made->set_exception(std::current_exception());
    }
  }).detach();
  if (result.wait_for(options.timeout + std::chrono::seconds(2)) != std::future_status::ready)
    throw PeerError("group: no answer");
  return result.get();
}

/// Where rank 0 listens: at one interface, not at all of them.
int listen_for_peers(const Launch& launch) {
  const std::string address = listening_address(launch);
  const int socket = bound_socket(address, launch.master_port);
  if (socket >= 0) return socket;
  if (errno == EADDRINUSE)
    throw ConfigError("group: port " + std::to_string(launch.master_port) +
                      " is in use by another program; set MASTER_PORT to a free one");
  throw ConfigError("group: cannot listen at " + address + ":" + std::to_string(launch.master_port) + " (" +
                    std::strerror(errno) + "); check MASTER_ADDR and MASTER_PORT");
}

c10::intrusive_ptr<c10d::Store> connect(const Launch& launch, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(launch.master_port);
  options.isServer = launch.rank == 0 && !launch.store_exists;
  options.waitWorkers = false;  // they are awaited by name, so that the missing ones can be named
  options.timeout = timeout;
  if (options.isServer) options.masterListenFd = listen_for_peers(launch);
  try {
    return construct(store_address(launch), options);
  } catch (const std::exception& error) {
    if (options.isServer && contains(error.what(), "EADDRINUSE"))
      throw ConfigError("group: port " + std::to_string(launch.master_port) +
                        " is in use by another program; set MASTER_PORT to a free one");
    if (options.isServer)
      throw ConfigError("group: cannot listen at " + place(launch) + "; check MASTER_ADDR and MASTER_PORT");
    throw PeerError("group: rank " + std::to_string(launch.rank) + " found no rank 0 of this run at " + place(launch) +
                    "; is rank 0 running, and does the port belong to it?");
  }
}

void claim_rank(c10d::Store& store, const Launch& launch) {
  const std::string rank = std::to_string(launch.rank), mine = unique_name();
  if (store.compareSet("claims/" + rank, "", mine) != mine)
    throw ConfigError("group: rank " + rank + " at " + place(launch) +
                      " is taken by another process; give each process its own rank, and each run its own MASTER_PORT");
  store.set("world/" + rank, std::to_string(launch.world_size));
}

[[noreturn]] void fail_missing(const std::string& missing, const Launch& launch, const Deadline& deadline) {
  throw PeerError("group: rank " + missing + " of " + std::to_string(launch.world_size) + " did not come to " +
                  place(launch) + " within " + std::to_string(static_cast<int64_t>(deadline.seconds)) + " s");
}

// Waits for the key `stem` + rank of every rank; `seen` is told each that is there.
void await_keys(c10d::Store& store, const std::string& stem, const Launch& launch, const Deadline& deadline,
                const std::function<void(const std::string& rank)>& seen) {
  std::string missing;
  int count = 0;
  for (int number = 0; number < launch.world_size; ++number) {
    const std::string rank = std::to_string(number);
    const auto left = std::chrono::duration_cast<milliseconds>(deadline.at - Clock::now());
    try {
      store.wait({stem + rank}, std::max(left, milliseconds(1)));
    } catch (const std::exception&) {
      missing += (missing.empty() ? "" : ", ") + rank;
      if (++count == 8 && number + 1 < launch.world_size) {
        missing += " and perhaps more";
        break;
      }
      continue;
    }
    seen(rank);
  }
  if (!missing.empty()) fail_missing(missing, launch, deadline);
}

void await_peers(c10d::Store& store, const Launch& launch, const Deadline& deadline) {
  await_keys(store, "world/", launch, deadline, [&](const std::string& rank) {
    const std::string theirs = store.get_to_str("world/" + rank);
    if (theirs != std::to_string(launch.world_size))
      throw ConfigError("group: rank " + std::to_string(launch.rank) + " was started with a world size of " +
                        std::to_string(launch.world_size) + ", rank " + rank + " with " + theirs +
                        "; start all ranks of a run the same way");
  });
}

// Counts those who came to the port, of whatever run.
constexpr const char* kArrivals = "memsieve/arrivals";

void tell_of_strangers(c10d::Store& server, const Launch& launch) {
  const int64_t others = server.add(kArrivals, 0) - launch.world_size;
  if (others > 0)
    log_warning("group: " + std::to_string(others) + " processes of other runs came to " + place(launch) +
                " and were ignored; give each run its own MASTER_PORT");
}

// What may explain that somebody is missing; "" if nobody else came.
std::string strangers_instead(c10d::Store& server, c10d::Store& own, const Launch& launch) {
  try {
    int64_t others = server.add(kArrivals, 0);
    for (int rank = 0; rank < launch.world_size; ++rank) others -= own.check({"world/" + std::to_string(rank)}) ? 1 : 0;
    if (others <= 0) return "";
    return "; " + std::to_string(others) +
           " processes came that are not of this run: its ranks have one job id and, if any, one MEMSIEVE_SECRET_FILE";
  } catch (const std::exception&) {
    return "";
  }
}

// A name for this attempt on a store that torchrun's agent keeps over restarts, with the keys of attempts that died.
// (Its restart count is no such name: it counts each machine's own failures.) Rank 0 invites under a name of its own;
// the others answer with names of theirs, and take the attempt in which rank 0, alive, has read just that answer.
std::string agree_on_attempt(c10d::Store& store, const Launch& launch, const Deadline& deadline) {
  const auto answer = [](const std::string& attempt, const std::string& rank) { return attempt + "/answer/" + rank; };
  const auto read = [](const std::string& attempt, const std::string& rank) { return attempt + "/read/" + rank; };
  std::string mine = unique_name(), rank = std::to_string(launch.rank);
  if (launch.rank == 0) {
    store.set(answer(mine, "0"), mine);
    store.set("invitation", mine);
    std::vector<std::pair<std::string, std::string>> answers;
    await_keys(store, answer(mine, ""), launch, deadline,
               [&](const std::string& peer) { answers.emplace_back(peer, store.get_to_str(answer(mine, peer))); });
    for (const auto& [peer, theirs] : answers) store.set(read(mine, peer), theirs);
    return mine;
  }
  std::string invitation;
  while (Clock::now() < deadline.at) {
    if (store.check({"invitation"})) {
      const std::string newest = store.get_to_str("invitation");
      if (newest != invitation) store.set(answer(newest, rank), mine);
      invitation = newest;
      if (store.check({read(newest, rank)}) && store.get_to_str(read(newest, rank)) == mine) return invitation;
    }
    std::this_thread::sleep_for(milliseconds(20));
  }
  if (!invitation.empty()) await_keys(store, answer(invitation, ""), launch, deadline, [](const std::string&) {});
  fail_missing("0", launch, deadline);
}

}  // namespace

c10::intrusive_ptr<c10d::Store> meet(const Launch& launch, double seconds) {
  const QuietC10d quiet(Quiet::all);
  const auto timeout = milliseconds(static_cast<int64_t>(seconds * 1000));
  const Deadline deadline{Clock::now() + timeout, seconds};
  const std::string token = run_token(launch);
  const auto server = connect(launch, timeout);
  auto store = sealed_store(server, token);
  const auto lost = [&] {
    return PeerError("group: rank " + std::to_string(launch.rank) + " lost the store at " + place(launch) +
                     "; has rank 0 ended?");
  };
  try {
    server->add(kArrivals, 1);
    if (launch.store_exists)
      store = c10::make_intrusive<c10d::PrefixStore>(agree_on_attempt(*store, launch, deadline), store);
    claim_rank(*store, launch);
    await_peers(*store, launch, deadline);
    if (launch.rank == 0 && !launch.store_exists) tell_of_strangers(*server, launch);
  } catch (const PeerError& error) {
    throw PeerError(error.what() + (launch.store_exists ? "" : strangers_instead(*server, *store, launch)));
  } catch (const c10::Error&) {
    throw lost();
  }
  return store;
}

}  // namespace memsieve::runtime
