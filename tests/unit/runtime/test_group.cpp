// Groups over Gloo: what they compute, and how they fail.
#include <ATen/ATen.h>
#include <runtime/group.h>
#include <runtime/rendezvous.h>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <support/process_ranks.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <csignal>
#include <memory>

namespace of_test_group {

using namespace memsieve::runtime;
using namespace memsieve::testing;
using Catch::Contains;

TEST_CASE("one rank alone goes through the same code") {
  Group group(Launch{}, c10::kCPU, impatient());
  group.barrier();
  const auto values = at::arange(5, at::kFloat);
  group.all_reduce_sum(values);
  group.broadcast(values);
  REQUIRE(at::equal(values, at::arange(5, at::kFloat)));
  REQUIRE((group.any(true) && !group.any(false)));
  REQUIRE(group.broadcast(std::string("text")) == "text");
  REQUIRE((group.backend() && group.process_group()));
}

TEST_CASE("sums, broadcasts and agreements reach all ranks") {
  const auto errors = run_groups(4, [](Group& group) {
    const auto expect = [](bool good, const char* what) {
      if (!good) throw std::logic_error(what);
    };
    const auto sum = at::full({3}, group.rank() + 1.0, at::kDouble);
    group.all_reduce_sum(sum);
    expect(at::equal(sum, at::full({3}, 10.0, at::kDouble)), "sum");
    const auto ids = at::full({2}, group.rank(), at::kLong);
    group.broadcast(ids, 2);
    expect(at::equal(ids, at::full({2}, 2, at::kLong)), "broadcast");
    expect(group.any(group.rank() == 3), "any true");
    expect(!group.any(false), "any false");
    expect(group.broadcast(group.rank() == 1 ? std::string("from one") : std::string(), 1) == "from one", "text");
    expect(group.broadcast(std::string()).empty(), "no text");
  });
  REQUIRE(errors == no_errors(4));
}

TEST_CASE("a barrier waits for the last") {
  std::atomic<int> arrived{0};
  std::atomic<bool> early{false};
  const auto errors = run_groups(3, [&](Group& group) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60 * group.rank()));
    ++arrived;
    group.barrier();
    if (arrived != 3) early = true;
  });
  REQUIRE(errors == no_errors(3));
  REQUIRE_FALSE(early);
}

TEST_CASE("a peer that is gone is a PeerError of the sieve's gather, with what c10d threw as its cause") {
  const int port = free_port();
  bool has_cause = false;
  const auto errors = run_ranks(2, [&](int rank) {
    Group group(local_launch(rank, 2, port), c10::kCPU, impatient(30, 5));
    if (rank == 1) return;
    try {
      group.communicator()->all_gather(at::zeros({4}));
    } catch (const memsieve::PeerError& error) {
      has_cause = error.cause() != nullptr;
      throw;
    }
  });
  CHECK_THAT(errors[0], Contains("PeerError: rank 0: a peer is gone or did not come to the gather: ") &&
                            !Contains("\n") && !Contains(".cc:"));
  CHECK(has_cause);
}

TEST_CASE("a port in use is said at once") {
  const DeafServer other;
  const auto errors = run_ranks(1, [&](int) { Group(local_launch(0, 2, other.port()), c10::kCPU, impatient(5)); });
  REQUIRE(errors[0] == "ConfigError: group: port " + std::to_string(other.port()) +
                           " is in use by another program; set MASTER_PORT to a free one");
}

TEST_CASE("a port that belongs to something else does not hold a rank for ever") {
  const DeafServer other;
  const auto start = std::chrono::steady_clock::now();
  const auto errors = run_ranks(1, [&](int) { Group(local_launch(1, 2, other.port()), c10::kCPU, impatient(2)); });
  CHECK_THAT(errors[0], Contains("PeerError: group: rank 1") && !Contains("\n"));
  REQUIRE(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
}

TEST_CASE("a rank 0 that never comes") {
  const auto errors = run_ranks(1, [&](int) { Group(local_launch(1, 2, free_port()), c10::kCPU, impatient(2)); });
  CHECK_THAT(errors[0], Contains("PeerError: group: rank 1 found no rank 0") && !Contains("\n"));
}

TEST_CASE("peers that never come are named") {
  const int port = free_port();
  const auto errors = run_ranks(2, [&](int rank) { Group(local_launch(2 * rank, 4, port), c10::kCPU, impatient(2)); });
  CHECK_THAT(errors[0], Catch::Equals("PeerError: group: rank 1, 3 of 4 did not come to 127.0.0.1:" +
                                      std::to_string(port) + " within 2 s"));
  CHECK_THAT(errors[1], Contains("PeerError: group:") && !Contains("\n"));
}

TEST_CASE("one rank claimed twice") {
  const int port = free_port();
  std::atomic<int> met{0};
  std::atomic<bool> third_done{false};
  const auto wait_for = [](const auto& condition) {
    for (int i = 0; i < 3000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  };
  const auto errors = run_ranks(3, [&](int thread) {
    if (thread == 2) {
      wait_for([&] { return met == 2; });
      const auto done = [&](void*) { third_done = true; };
      const std::unique_ptr<void, decltype(done)> mark(&third_done, done);
      Group(local_launch(1, 2, port), c10::kCPU, impatient());
      return;
    }
    const Group group(local_launch(thread, 2, port), c10::kCPU, impatient());
    ++met;
    wait_for([&] { return third_done.load(); });
  });
  REQUIRE((errors[0].empty() && errors[1].empty()));
  CHECK_THAT(errors[2], Contains("ConfigError: group: rank 1 at") && Contains("is taken by another process"));
}

TEST_CASE("different world sizes") {
  const int port = free_port();
  const auto errors =
      run_ranks(2, [&](int rank) { Group(local_launch(rank, 2 + rank, port), c10::kCPU, impatient(3)); });
  // Where rank 0, which keeps the store, has left before rank 1 could read what is wrong, only rank 0 says it.
  CHECK_THAT(errors[1], Contains("ConfigError: group: rank 1 was started with a world size of 3, rank 0 with 2") ||
                            Contains("lost the store") || Contains("did not come"));
  CHECK_THAT(errors[0], Contains("ConfigError: group: rank 0 was started with a world size of 2, rank 1 with 3"));
}

TEST_CASE("ranks of which only some have a GPU are told so at once") {
  const int port = free_port();
  const auto errors = run_ranks(3, [&](int rank) {
    const c10::Device device = rank == 1 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, 0);
    Group(local_launch(rank, 3, port), device, impatient());
  });
  for (const auto& error : errors) CHECK_THAT(error, Contains("of all ranks 2 have one and 1 have none"));
  CHECK_THAT(errors[1], Contains("ConfigError: device: rank 1 has none"));
}

TEST_CASE("a peer that dies is a PeerError on the others") {
  const auto errors = run_groups(2, [](Group& group) {
    if (group.rank() == 1) return;
    group.all_reduce_sum(at::zeros({4}));
  });
  REQUIRE(errors[1].empty());
  CHECK_THAT(errors[0], Contains("PeerError: rank 0: all-reduce: a peer or the network failed: ") && !Contains("\n"));
}

TEST_CASE("what is written to a peer that is gone is an error, not a signal that ends the process; a handler stays") {
  const auto found = std::signal(SIGPIPE, SIG_DFL);
  REQUIRE(run_groups(1, [](Group&) {}) == no_errors(1));
  CHECK(std::signal(SIGPIPE, [](int) {}) == SIG_IGN);
  const auto handler = std::signal(SIGPIPE, [](int) {});
  std::signal(SIGPIPE, handler);
  REQUIRE(run_groups(1, [](Group&) {}) == no_errors(1));
  CHECK(std::signal(SIGPIPE, SIG_IGN) == handler);
  if (found != SIG_DFL) std::signal(SIGPIPE, found);
}

TEST_CASE("a rank that dies after it came, but before the others could connect, ends them in rendezvous_seconds") {
  const int port = free_port();
  const auto start = std::chrono::steady_clock::now();
  const auto errors = run_ranks(2, [&](int rank) {
    if (rank == 1) {
      const auto store = meet(local_launch(1, 2, port), 20);
      return;
    }
    Group(local_launch(0, 2, port), c10::kCPU, impatient(3, 600));
  });
  CHECK_THAT(errors[0], Contains("PeerError: rank 0: connecting to the peers") && !Contains("\n"));
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(60));
}

TEST_CASE("rendezvous_seconds do not limit what comes later") {
  const int port = free_port();
  const auto errors = run_ranks(2, [&](int rank) {
    Group group(local_launch(rank, 2, port), c10::kCPU, impatient(2, 30));
    if (rank == 1) std::this_thread::sleep_for(std::chrono::seconds(4));
    group.all_reduce_sum(at::zeros({4}));
  });
  REQUIRE(errors == no_errors(2));
}

TEST_CASE("how long to wait for the others depends on who starts them") {
  Launch launch;
  CHECK(default_rendezvous_seconds(launch) == 300);
  launch.launcher = "torchrun";
  CHECK(default_rendezvous_seconds(launch) == 60);
}

namespace {

// Rank 0 of the first group serves, as torchrun's agent does; the ranks of each attempt, all clients, meet there.
struct AgentStore {
  const int port = free_port();
  Group agent{local_launch(0, 1, port), c10::kCPU, impatient()};

  std::vector<std::string> attempt(std::vector<int> ranks, int world_size, int late = -1) const {
    return run_ranks(static_cast<int>(ranks.size()), [&](int thread) {
      Launch launch = local_launch(ranks[thread], world_size, port);
      launch.store_exists = true;
      if (launch.rank == late) std::this_thread::sleep_for(std::chrono::milliseconds(300));
      Group group(launch, c10::kCPU, impatient(2));
      const auto sum = at::full({1}, launch.rank, at::kLong);
      group.all_reduce_sum(sum);
      if (sum.item<int64_t>() != world_size * (world_size - 1) / 2) throw std::logic_error("sum");
    });
  }
};

}  // namespace

TEST_CASE("attempts follow each other on the store of torchrun's agent, whoever comes last") {
  const AgentStore store;
  for (const int late : {-1, 0, 1, 2, -1}) REQUIRE(store.attempt({0, 1, 2}, 3, late) == no_errors(3));
}

TEST_CASE("attempts that lacked a rank do not spoil the next on the same store") {
  const AgentStore store;
  for (const int missing : {2, 0, 1}) {
    const auto errors = store.attempt({(missing + 1) % 3, (missing + 2) % 3}, 3);
    for (const auto& error : errors) CHECK_THAT(error, Contains("PeerError: group: rank") && !Contains("\n"));
    if (missing == 2)
      CHECK_THAT(errors[0], Contains("rank 2 of 3 did not come to 127.0.0.1:" + std::to_string(store.port)));
    REQUIRE(store.attempt({0, 1, 2}, 3, missing) == no_errors(3));
  }
}

TEST_CASE("devices") {
  REQUIRE(choose_device(Launch{}, "cpu") == c10::Device(c10::kCPU));
  REQUIRE_THROWS_AS(choose_device(Launch{}, "gpu"), memsieve::ConfigError);
  Launch many;
  many.local_world_size = many.world_size = 4;
  many.local_rank = 3;
  for (const char* wish : {"auto", "cuda"}) {
    REQUIRE(choose_device(many, wish, 4) == c10::Device(c10::kCUDA, 3));
    REQUIRE_THROWS_WITH(choose_device(many, wish, 2),
                        Contains("4 processes on this machine but 2 visible GPUs; start at most 2"));
    REQUIRE_THROWS_AS(choose_device(many, wish, 1), memsieve::ConfigError);
  }
  REQUIRE(choose_device(many, "auto", 0) == c10::Device(c10::kCPU));
  REQUIRE_THROWS_WITH(choose_device(many, "cuda", 0), Contains("4 processes on this machine but 0"));
  many.launcher = "slurm";
  REQUIRE(choose_device(many, "auto", 1) == c10::Device(c10::kCUDA, 0));
}

}  // namespace of_test_group
