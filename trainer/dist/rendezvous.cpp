#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <memsieve/error.h>
#include <trainer/dist/rendezvous.h>

#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

namespace memsieve::trainer {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// c10d reports each failed attempt to connect; the one that counts is thrown. TORCH_CPP_LOG_LEVEL brings the
// rest back.
class QuietC10d {
 public:
  QuietC10d() : level_(FLAGS_caffe2_log_level) {
    if (!std::getenv("TORCH_CPP_LOG_LEVEL")) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  }
  ~QuietC10d() { FLAGS_caffe2_log_level = level_; }
  QuietC10d(const QuietC10d&) = delete;
  QuietC10d& operator=(const QuietC10d&) = delete;

 private:
  int level_;
};

std::string place(const Launch& launch) {
  return launch.master_addr + ":" + std::to_string(launch.master_port);
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// TCPStore waits for ever for the greeting of a server that is none. So it is made in a thread, which is left
// behind in that case: the error ends the run anyway.
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
    throw PeerError("group: rank " + std::to_string(launch.rank) + " found no rank 0 of this run at " +
                    place(launch) + "; is rank 0 running, and does the port belong to it?");
  }
}

void claim_rank(c10d::Store& store, const Launch& launch) {
  const std::string rank = std::to_string(launch.rank);
  if (store.add("claims/" + rank, 1) != 1)
    throw ConfigError(
        "group: rank " + rank + " at " + place(launch) +
        " is taken by another process; give each process its own rank, and each run its own MASTER_PORT");
  store.set("world/" + rank, std::to_string(launch.world_size));
}

void await_peers(c10d::Store& store, const Launch& launch, Clock::time_point deadline, double seconds) {
  std::string missing;
  int count = 0;
  for (int rank = 0; rank < launch.world_size; ++rank) {
    const std::string name = std::to_string(rank), key = "world/" + name;
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    try {
      store.wait({key}, std::max(left, milliseconds(1)));
    } catch (const std::exception&) {
      missing += (missing.empty() ? "" : ", ") + name;
      if (++count == 8 && rank + 1 < launch.world_size) {
        missing += " and perhaps more";
        break;
      }
      continue;
    }
    const std::string theirs = store.get_to_str(key);
    if (theirs != std::to_string(launch.world_size))
      throw ConfigError("group: rank " + std::to_string(launch.rank) + " was started with a world size of " +
                        std::to_string(launch.world_size) + ", rank " + name + " with " + theirs +
                        "; start all ranks of a run the same way");
  }
  if (missing.empty()) return;
  throw PeerError("group: rank " + missing + " of " + std::to_string(launch.world_size) +
                  " did not come to " + place(launch) + " within " +
                  std::to_string(static_cast<int64_t>(seconds)) + " s");
}

}  // namespace

c10::intrusive_ptr<c10d::Store> meet(const Launch& launch, double seconds) {
  const QuietC10d quiet;
  const auto timeout = milliseconds(static_cast<int64_t>(seconds * 1000));
  const auto deadline = Clock::now() + timeout;
  const auto server = connect(launch, timeout);
  // An earlier attempt under the same torchrun left its keys behind.
  auto store = c10::make_intrusive<c10d::PrefixStore>("memsieve/" + std::to_string(launch.attempt), server);
  try {
    claim_rank(*store, launch);
    await_peers(*store, launch, deadline, seconds);
  } catch (const c10::Error&) {
    throw PeerError("group: rank " + std::to_string(launch.rank) + " lost the store at " + place(launch) +
                    "; has rank 0 ended?");
  }
  return store;
}

}  // namespace memsieve::trainer
