#include "record/ledger.h"

#include <ATen/ATen.h>
#include <hdf5.h>
#include <memsieve/error.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <set>

#include <support/ledgers.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_ledger {

using memsieve::Ledger;
using memsieve::LedgerRow;
using memsieve::testing::TemporaryFolder;
using toy::kHeader;
using toy::rows;
using toy::steps_in;

namespace {

ino_t inode(const std::string& path) {
  struct stat info {};
  REQUIRE(stat(path.c_str(), &info) == 0);
  return info.st_ino;
}

/// Files that were synced.
std::set<ino_t> synced;

/// As if the rows after the first `count` had never reached the disk.
void shrink(const std::string& path, hsize_t count) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  const hid_t visits = H5Dopen2(file, "visits", H5P_DEFAULT);
  REQUIRE(H5Dset_extent(visits, &count) >= 0);
  H5Dclose(visits);
  H5Fclose(file);
}

}  // namespace

/// The library's calls come here, too.
extern "C" int fsync(int file) {
  struct stat info {};
  if (fstat(file, &info) == 0) synced.insert(info.st_ino);
  return static_cast<int>(syscall(SYS_fsync, file));
}

TEST_CASE("what is appended is read back, and an existing ledger is never overwritten", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("a.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 5000));
    ledger.append(rows(5000, 5003));
    ledger.flush();
    CHECK(steps_in(path).size() == 5003);  // readable while it is written
  }
  const auto steps = steps_in(path);
  REQUIRE(steps.size() == 5003);
  for (uint64_t i = 0; i < steps.size(); ++i) REQUIRE(steps[i] == i);
  CHECK_THROWS_WITH(Ledger(path, kHeader), Catch::Contains("exists already"));
  CHECK(steps_in(path).size() == 5003);
}

TEST_CASE("a resumed run continues after the checkpoint's rows, in the same file", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("b.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 9000));
  }
  const auto before = inode(path);
  {
    Ledger ledger(path, kHeader, 8500);
    CHECK(ledger.note().empty());
    ledger.append(rows(8500, 8510));
  }
  const auto steps = steps_in(path);
  REQUIRE(steps.size() == 8510);
  for (uint64_t i = 0; i < steps.size(); ++i) REQUIRE(steps[i] == i);
  CHECK(inode(path) == before);  // nothing was copied
  CHECK(folder.entries() == 1);
  CHECK_THROWS_WITH(Ledger(folder.file("no/folder.h5"), kHeader), Catch::Contains("cannot be created"));
}

TEST_CASE("flush means that the rows are on the disk, not only with the operating system", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("sync.h5");
  Ledger ledger(path, kHeader);
  ledger.append(rows(0, 10));
  synced.clear();
  ledger.flush();
  CHECK(synced.count(inode(path)) == 1);
}

TEST_CASE("a ledger that has lost rows goes on after those that are left, and says so once", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("behind.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 70));
  }
  {
    Ledger ledger(path, kHeader, 100);
    CHECK_THAT(ledger.note(), Catch::Contains("holds 70 rows, but the checkpoint counts on 100") &&
                                  Catch::Contains("rows 70 to 99 are gone, those after step 69"));
    ledger.append(rows(100, 110));
  }
  {
    Ledger ledger(path, kHeader, 105);  // a later checkpoint: the rows that are missing count
    CHECK(ledger.note().empty());
  }
  auto expected = std::vector<uint64_t>(70);
  std::iota(expected.begin(), expected.end(), 0);
  for (uint64_t i = 100; i < 105; ++i) expected.push_back(i);
  CHECK(steps_in(path) == expected);
}

TEST_CASE("a ledger that is gone or cannot be read begins anew, and nothing is thrown away", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("lost.h5");
  {
    Ledger ledger(path, kHeader, 5);
    CHECK_THAT(ledger.note(), Catch::Contains("is missing") && Catch::Contains("the 5 rows before it are gone"));
    ledger.append(rows(5, 8));
  }
  CHECK(Ledger(path, kHeader, 8).note().empty());
  CHECK(steps_in(path) == std::vector<uint64_t>{5, 6, 7});
  std::ofstream(path) << "no HDF5";
  for (const char* aside : {".damaged", ".damaged-2"}) {
    {
      const Ledger ledger(path, kHeader, 8);
      CHECK_THAT(ledger.note(), Catch::Contains("cannot be read") && Catch::Contains("It is now " + path + aside));
    }
    CHECK(steps_in(path).empty());
    std::ofstream(path) << "no HDF5";
  }
  CHECK(std::filesystem::file_size(path + ".damaged") == 7);
  std::filesystem::remove(path);
  { const Ledger other(path, {"run-1", {"magnitude"}, ""}); }
  CHECK_THAT(Ledger(path, kHeader, 0).note(), Catch::Contains("was written with other filters"));
}

TEST_CASE("whatever is lost and wherever a run is resumed, the ledger holds what is left of the run's rows",
          "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("random.h5");
  std::mt19937 random(7);
  const auto below = [&](uint64_t n) { return std::uniform_int_distribution<uint64_t>(0, n)(random); };
  std::vector<uint64_t> left;  // the run's rows that the file holds
  uint64_t run = 0;
  for (int resumption = 0; resumption < 60; ++resumption) {
    const int fate = static_cast<int>(below(7));
    if (fate == 0 && std::filesystem::remove(path)) left.clear();
    if (fate < 3 && !left.empty()) {
      left.resize(left.size() - below(left.size()));
      shrink(path, left.size());
    }
    run -= below(std::min<uint64_t>(run, 6000));
    const auto end = std::lower_bound(left.begin(), left.end(), run);
    left.erase(end, left.end());
    {
      Ledger ledger(path, kHeader, static_cast<int64_t>(run));
      const uint64_t more = below(5000);
      ledger.append(rows(run, run + more));
      for (uint64_t i = 0; i < more; ++i) left.push_back(run++);
    }
    INFO("resumption " << resumption);
    REQUIRE(steps_in(path) == left);
  }
}

TEST_CASE("after a crash the ledger is readable up to the last flush", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("c.h5");
  const pid_t child = fork();
  if (child == 0) {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 300));
    ledger.flush();
    raise(SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK(steps_in(path).size() == 300);
}

TEST_CASE("a run that is killed at any moment is resumed from its last flush", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("killed.h5");
  { const Ledger empty(path, kHeader); }
  uint64_t flushed = 0;
  for (int kill_number = 0; kill_number < 40; ++kill_number) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
      Ledger ledger(path, kHeader, static_cast<int64_t>(flushed));
      for (uint64_t row = flushed;; row += 700) {
        ledger.append(rows(row, row + 300));
        ledger.flush();
        const uint64_t safe = row + 300;
        if (!ledger.note().empty() || write(ends[1], &safe, sizeof safe) != sizeof safe) _exit(1);
        ledger.append(rows(row + 300, row + 700));  // these may be lost
      }
    }
    close(ends[1]);
    // Also while the file is opened and cut.
    if (kill_number % 2 == 0) usleep(static_cast<useconds_t>(500 + 300 * kill_number));
    if (uint64_t safe = 0; kill_number % 2 == 1 && read(ends[0], &safe, sizeof safe) == sizeof safe) {
      flushed = safe;
      usleep(static_cast<useconds_t>(200 * kill_number));
    }
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status));
    for (uint64_t safe = 0; read(ends[0], &safe, sizeof safe) == sizeof safe;) flushed = safe;
    close(ends[0]);
    // Whoever looks at the run now can read it, too, also if it was killed while the file was cut.
    const auto steps = steps_in(path);
    REQUIRE(steps.size() >= flushed);
    for (uint64_t i = 0; i < flushed; ++i) REQUIRE(steps[i] == i);
  }
  REQUIRE(flushed > 0);
  { CHECK(Ledger(path, kHeader, static_cast<int64_t>(flushed)).note().empty()); }
  const auto steps = steps_in(path);
  REQUIRE(steps.size() == flushed);
  for (uint64_t i = 0; i < steps.size(); ++i) REQUIRE(steps[i] == i);
}

TEST_CASE("a ledger that is being written is left alone, with the name of who writes it", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("two.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 10));
    ledger.flush();
    const auto writer = Catch::Contains("is being written by process " + std::to_string(getpid()) + " on ");
    CHECK_THROWS_WITH(Ledger(path, kHeader, 5), writer);
    CHECK_THROWS_WITH(Ledger(path, kHeader), writer);
    ledger.append(rows(10, 20));
    ledger.flush();
    CHECK(steps_in(path).size() == 20);
  }
  CHECK(folder.entries() == 1);
  CHECK(Ledger(path, kHeader, 20).note().empty());
}

TEST_CASE("a reader that holds HDF5's lock on the file is no damage", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("notebook.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 10));
  }
  const int reader = open(path.c_str(), O_RDONLY);
  REQUIRE(flock(reader, LOCK_SH) == 0);
  CHECK(Ledger(path, kHeader, 10).note().empty());
  close(reader);
  CHECK(steps_in(path).size() == 10);
}

TEST_CASE("an attribute gaps of any other make is damage, not read into memory", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("gaps.h5");
  const hsize_t three[] = {3}, wide[] = {1, 5};
  const int rank = GENERATE(1, 2);
  const hsize_t* const shape = rank == 1 ? three : wide;
  const int number = GENERATE(0, 1, 2);
  const hid_t stored = number == 0 ? H5T_NATIVE_INT64 : number == 1 ? H5T_NATIVE_DOUBLE : H5T_NATIVE_INT8;
  { Ledger(path, kHeader).append(rows(0, 10)); }
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), space = H5Screate_simple(rank, shape, nullptr);
  const hid_t attribute = H5Acreate2(file, "gaps", stored, space, H5P_DEFAULT, H5P_DEFAULT);
  REQUIRE(attribute >= 0);
  H5Aclose(attribute);
  H5Sclose(space);
  H5Fclose(file);
  CHECK_THAT(Ledger(path, kHeader, 10).note(), Catch::Contains("its attribute gaps") && Catch::Contains(".damaged"));
}

TEST_CASE("a ledger that cannot be continued because the disk is full is kept as it is", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("full.h5");
  { Ledger(path, kHeader).append(rows(0, 9000)); }
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit small { 64, RLIM_INFINITY };  // what lies above fails as on a full disk
    if (setrlimit(RLIMIT_FSIZE, &small) != 0) _exit(2);
    try {
      const Ledger ledger(path, kHeader, 8500);
    } catch (const memsieve::DataError&) {
      _exit(0);
    }
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  { CHECK(Ledger(path, kHeader, 8500).note().empty()); }
  CHECK(steps_in(path).size() == 8500);
  CHECK_FALSE(std::filesystem::exists(path + ".damaged"));
}

TEST_CASE("what bears the ledger's name and is no file is set aside", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("other.h5"), elsewhere = folder.file("elsewhere");
  const int kind = GENERATE(0, 1, 2);
  if (kind == 0) std::filesystem::create_directory(path);
  if (kind == 1) REQUIRE(mkfifo(path.c_str(), 0600) == 0);
  if (kind == 2) std::filesystem::create_symlink(elsewhere, path);
  CHECK_THAT(Ledger(path, kHeader, 4).note(), Catch::Contains("is no plain file") && Catch::Contains(".damaged"));
  CHECK(std::filesystem::is_regular_file(path));
  CHECK_FALSE(std::filesystem::exists(elsewhere));
}

}  // namespace of_test_ledger
