// One run, one folder: whoever comes second is told who is there.
#include <support/files.h>
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <sys/wait.h>
#include <trainer/checkpoint/run_lock.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include <catch2/catch.hpp>

namespace of_test_run_lock {

using namespace memsieve;
using namespace memsieve::trainer;
using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

struct Folder {
  testing::TemporaryFolder parent;
  Folder() { fs::create_directory(run()); }
  std::string run() const { return parent.file("run"); }
  std::string lock() const { return run() + "/run.lock"; }
};

}  // namespace

TEST_CASE("a second run in a live folder is refused with the owner's host and process") {
  const Folder folder;
  {
    RunLock first, second;
    first.take(folder.run(), "here");
    CHECK(first.held());
    const auto owner = "process " + std::to_string(getpid()) + " on " + memsieve::detail::FileLock::this_host();
    CHECK_THROWS_WITH(second.take(folder.run(), "run.yaml:2: output_dir"),
                      Catch::StartsWith("run.yaml:2: output_dir: " + folder.run()) && Catch::Contains(owner));
    CHECK_THROWS_WITH(RunLock::refuse_if_taken(folder.run(), "here"), Catch::Contains(owner));
    CHECK_FALSE(second.held());
    CHECK_NOTHROW(first.require_in_place());
  }
  CHECK(fs::is_empty(folder.run()));
  CHECK_NOTHROW(RunLock::refuse_if_taken(folder.run(), "here"));
  CHECK(fs::is_empty(folder.run()));
  RunLock third;
  third.take(folder.run(), "here");
  CHECK(third.held());
}

TEST_CASE("the lock goes with the process, however it ends, and not with a child") {
  const Folder folder;
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t owner = fork();
  if (owner == 0) {
    RunLock lock;
    lock.take(folder.run(), "here");
    const char held = lock.held() ? 'y' : 'n';
    if (write(ends[1], &held, 1) != 1) _exit(1);
    pause();
  }
  char held = 0;
  REQUIRE(read(ends[0], &held, 1) == 1);
  REQUIRE(held == 'y');
  RunLock lock;
  CHECK_THROWS_WITH(lock.take(folder.run(), "here"), Catch::Contains("process " + std::to_string(owner)));
  kill(owner, SIGKILL);
  waitpid(owner, nullptr, 0);
  CHECK(fs::exists(folder.lock()));
  CHECK_NOTHROW(RunLock::refuse_if_taken(folder.run(), "here"));
  lock.take(folder.run(), "here");
  CHECK(lock.held());
  const pid_t child = fork();
  if (child == 0) {
    { const RunLock mine = std::move(lock); }
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  CHECK_NOTHROW(lock.require_in_place());
  CHECK_THROWS_AS(RunLock::refuse_if_taken(folder.run(), "here"), ConfigError);
}

TEST_CASE("a machine that may be lost gets the time in which its lock is freed") {
  const Folder folder;
  RunLock first, second;
  first.take(folder.run(), "here");
  std::ofstream(folder.lock()) << "elsewhere 12\n";
  const auto begin = std::chrono::steady_clock::now();
  CHECK_THROWS_WITH(second.take(folder.run(), "here", 1s), Catch::Contains("process 12 on elsewhere"));
  CHECK(std::chrono::steady_clock::now() - begin >= 1s);
}

TEST_CASE("a folder that is moved, replaced or removed is missed") {
  const Folder folder;
  RunLock lock;
  lock.take(folder.run(), "here");
  const std::string aside = folder.parent.file("aside");
  fs::rename(folder.run(), aside);
  CHECK_THROWS_WITH(lock.require_in_place(), Catch::StartsWith(folder.run()) && Catch::Contains("moved"));
  fs::create_directory(folder.run());
  CHECK_THROWS_AS(lock.require_in_place(), DataError);
  {
    RunLock other;
    other.take(folder.run(), "here");
    CHECK_NOTHROW(other.require_in_place());
    CHECK_THROWS_AS(lock.require_in_place(), DataError);
  }
  fs::remove_all(folder.run());
  fs::rename(aside, folder.run());
  CHECK_NOTHROW(lock.require_in_place());
}

TEST_CASE("without a folder nothing is locked and nothing made") {
  const Folder folder;
  RunLock lock;
  lock.take(folder.parent.file("none"), "here");
  CHECK_FALSE(lock.held());
  CHECK_NOTHROW(lock.require_in_place());
  CHECK_FALSE(fs::exists(folder.parent.file("none")));
}

}  // namespace of_test_run_lock
