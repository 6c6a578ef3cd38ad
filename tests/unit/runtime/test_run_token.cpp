// Who belongs to a run: the token, and the store as its ranks see it.
#include <memsieve/error.h>
#include <runtime/run_token.h>
#include <support/files.h>
#include <support/process_ranks.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace of_test_run_token {

using namespace memsieve::runtime;
using namespace memsieve::testing;
using Catch::Contains;
using std::chrono::milliseconds;

namespace {

c10::intrusive_ptr<c10d::Store> short_lived() {
  auto store = c10::make_intrusive<c10d::HashStore>();
  store->setTimeout(milliseconds(200));
  return store;
}

/// The name under which `own` keeps its keys in `store`.
std::string name_in(c10d::Store& store, c10d::Store& own) {
  own.set("probe", "x");
  std::string name;
  for (const auto& key : store.listKeys())
    if (key.size() > 5 && key.compare(key.size() - 5, 5, "probe") == 0) name = key.substr(0, key.size() - 5);
  return name;
}

/// A client of the store at `port`, as any process can make one.
c10::intrusive_ptr<c10d::TCPStore> stranger(int port) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port);
  options.waitWorkers = false;
  return c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options);
}

struct SecretFile {
  const memsieve::testing::TemporaryFolder folder;
  const std::string path = folder.file("secret");
  explicit SecretFile(const std::string& text, mode_t mode = 0600) {
    std::ofstream(path) << text;
    ::chmod(path.c_str(), mode);
  }
};

}  // namespace

TEST_CASE("the code is HMAC-SHA-1") {
  // RFC 2202, section 3: cases 1, 2, 3 and 6
  CHECK(hmac_sha1(std::string(20, '\x0b'), "Hi There") == "b617318655057264e28bc0b6fb378c8ef146be00");
  CHECK(hmac_sha1("Jefe", "what do ya want for nothing?") == "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
  CHECK(hmac_sha1(std::string(20, '\xaa'), std::string(50, '\xdd')) == "125d7342b9ac11cd91a39af48aa17b4f63f175d3");
  CHECK(hmac_sha1(std::string(80, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First") ==
        "aa4ae5e15272d00e95705637ce8a3b55ed402112");
}

TEST_CASE("runs are told apart by job and secret") {
  Launch launch;
  const std::string none = run_token(launch);
  launch.job = "slurm 7.0";
  const std::string job = run_token(launch);
  const SecretFile secret("one");
  launch.secret_file = secret.path;
  const std::string first = run_token(launch);
  std::ofstream(secret.path) << "two";
  const std::string second = run_token(launch);
  CHECK(std::set<std::string>{none, job, first, second}.size() == 4);
  CHECK(run_token(launch) == second);
}

TEST_CASE("a secret file that is none, or that others can read, is refused") {
  Launch launch;
  launch.secret_file = "/nowhere/secret";
  CHECK_THROWS_WITH(run_token(launch), Contains("MEMSIEVE_SECRET_FILE /nowhere/secret: is no file"));
  const SecretFile open("x", 0644);
  launch.secret_file = open.path;
  CHECK_THROWS_WITH(run_token(launch), Contains("others can read it") && Contains("chmod 600"));
  ::chmod(open.path.c_str(), 0600);
  std::filesystem::resize_file(open.path, 0);
  CHECK_THROWS_WITH(run_token(launch), Contains("is empty"));
}

TEST_CASE("one token sees what it wrote, another sees nothing") {
  const auto store = short_lived();
  const auto a = sealed_store(store, "a"), also_a = sealed_store(store, "a"), b = sealed_store(store, "b");
  a->set("key", "value");
  CHECK(also_a->get_to_str("key") == "value");
  CHECK((also_a->check({"key"}) && !b->check({"key"})));
  CHECK_THROWS(b->get("key"));
  CHECK(a->compareSet("claim", "", "mine") == "mine");
  CHECK(also_a->compareSet("claim", "", "theirs") == "mine");
  CHECK(b->compareSet("claim", "", "b's") == "b's");
}

TEST_CASE("what a stranger writes is not there; what it writes over is missed, not believed") {
  const auto store = short_lived();
  const auto own = sealed_store(store, "a");
  const std::string name = name_in(*store, *own);
  REQUIRE_FALSE(name.empty());
  store->set(name + "claim", std::string(60, 'x'));
  CHECK(own->compareSet("claim", "", "mine") == "mine");
  CHECK(own->get_to_str("claim") == "mine");
  own->set("other", "value");
  store->set(name + "claim", store->get_to_str(name + "other"));  // a value of ours, at another place
  CHECK_FALSE(own->check({"claim"}));
  CHECK_THROWS_WITH(own->get("claim"), Contains("is not of this run"));
  std::thread late([&] {
    std::this_thread::sleep_for(milliseconds(50));
    own->set("claim", "mine again");
  });
  own->wait({"claim"}, milliseconds(5000));
  late.join();
  CHECK(own->get_to_str("claim") == "mine again");
}

TEST_CASE("ranks of another run at the same port are ignored, and explain who is missing") {
  const int port = free_port();
  const auto errors = run_ranks(4, [&](int thread) {
    Launch launch = local_launch(thread % 2, 2, port);
    launch.job = thread < 2 ? "torchrun a" : "torchrun b";
    if (launch.rank == 0 && thread >= 2) return;  // the other run's rank 0 could not have this port
    if (thread == 3) return (void)Group(launch, c10::kCPU, impatient(3));
    if (thread == 1) std::this_thread::sleep_for(std::chrono::seconds(1));
    Group group(launch, c10::kCPU, impatient());
    if (thread == 0) std::this_thread::sleep_for(std::chrono::seconds(5));
  });
  CHECK((errors[0].empty() && errors[1].empty()));
  CHECK_THAT(errors[3], Contains("PeerError: group: rank 0 of 2 did not come") && Contains("not of this run") &&
                            Contains("MEMSIEVE_SECRET_FILE") && !Contains("\n"));
}

TEST_CASE("a stranger at the store cannot keep the ranks apart with claims of its own") {
  const int port = free_port();
  const auto errors = run_ranks(3, [&](int rank) {
    if (rank < 2) {
      if (rank == 1) std::this_thread::sleep_for(std::chrono::seconds(2));
      Group group(local_launch(rank, 2, port), c10::kCPU, impatient());
      group.barrier();
      return;
    }
    std::this_thread::sleep_for(milliseconds(500));
    const c10::intrusive_ptr<c10d::Store> store = stranger(port);  // its own set() hides that of texts
    for (const auto& key : store->listKeys()) {
      const size_t at = key.rfind("claims/0");
      if (at == std::string::npos) continue;
      store->set(key.substr(0, at) + "claims/1", std::string("x"));
      store->set(key.substr(0, at) + "world/1", std::string("2"));
    }
  });
  CHECK(errors == no_errors(3));
}

}  // namespace of_test_run_token
