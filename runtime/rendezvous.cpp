#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <memsieve/error.h>
#include <runtime/rendezvous.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <future>
#include <mutex>
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

// c10d reports each failed attempt to connect; the one that counts is thrown. TORCH_CPP_LOG_LEVEL brings the rest
// back. The level is the process's, and ranks may be threads of it: the first one in lowers it, the last one out puts
// it back.
class QuietC10d {
 public:
  QuietC10d() {
    const std::lock_guard lock(mutex_);
    if (living_++ > 0) return;
    level_ = FLAGS_caffe2_log_level;
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  }
  ~QuietC10d() {
    const std::lock_guard lock(mutex_);
    if (--living_ == 0) FLAGS_caffe2_log_level = level_;
  }
  QuietC10d(const QuietC10d&) = delete;
  QuietC10d& operator=(const QuietC10d&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int living_ = 0, level_ = 0;
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

c10::intrusive_ptr<c10d::Store> connect(const Launch& launch, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(launch.master_port);
  options.isServer = launch.rank == 0 && !launch.store_exists;
  options.waitWorkers = false;  // they are awaited by name, so that the missing ones can be named
  options.timeout = timeout;
  try {
    return construct(launch.master_addr, options);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    if (options.isServer && contains(text, "EADDRINUSE"))
      throw ConfigError("group: port " + std::to_string(launch.master_port) +
                        " is in use by another program; set MASTER_PORT to a free one");
    if (options.isServer)
      throw ConfigError("group: cannot listen at " + place(launch) + "; check MASTER_ADDR and MASTER_PORT");
    throw PeerError("group: rank " + std::to_string(launch.rank) + " found no rank 0 of this run at " + place(launch) +
                    "; is rank 0 running, and does the port belong to it?");
  }
}

void claim_rank(c10d::Store& store, const Launch& launch) {
  const std::string rank = std::to_string(launch.rank);
  if (store.add("claims/" + rank, 1) != 1)
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
  const QuietC10d quiet;
  const auto timeout = milliseconds(static_cast<int64_t>(seconds * 1000));
  const Deadline deadline{Clock::now() + timeout, seconds};
  const auto server = connect(launch, timeout);
  auto store = c10::make_intrusive<c10d::PrefixStore>("memsieve", server);
  try {
    if (launch.store_exists)
      store = c10::make_intrusive<c10d::PrefixStore>(agree_on_attempt(*store, launch, deadline), store);
    claim_rank(*store, launch);
    await_peers(*store, launch, deadline);
  } catch (const c10::Error&) {
    throw PeerError("group: rank " + std::to_string(launch.rank) + " lost the store at " + place(launch) +
                    "; has rank 0 ended?");
  }
  return store;
}

}  // namespace memsieve::runtime
