#include "record/ledger.h"

#include <ATen/ATen.h>
#include <hdf5.h>
#include <memsieve/error.h>
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

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

using memsieve::Ledger;
using memsieve::LedgerHeader;
using memsieve::LedgerRow;

namespace {

const LedgerHeader kHeader{"run-1", {"magnitude", "prediction_error"}, "seed: 1"};

std::vector<LedgerRow> rows(uint64_t from, uint64_t to) {
  std::vector<LedgerRow> list;
  for (uint64_t i = from; i < to; ++i) {
    LedgerRow row;
    row.step = i;
    row.sample = static_cast<int64_t>(i) * 10;
    row.raw = {static_cast<float>(i), -1.F};
    row.z = {0.5F, 0.25F};
    list.push_back(row);
  }
  return list;
}

std::vector<uint64_t> steps_in(const std::string& path) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY | H5F_ACC_SWMR_READ, H5P_DEFAULT);
  REQUIRE(file >= 0);
  const hid_t visits = H5Dopen2(file, "visits", H5P_DEFAULT), space = H5Dget_space(visits);
  std::vector<uint64_t> steps(H5Sget_simple_extent_npoints(space));
  const hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(uint64_t));
  H5Tinsert(type, "step", 0, H5T_NATIVE_UINT64);
  if (!steps.empty()) REQUIRE(H5Dread(visits, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, steps.data()) >= 0);
  H5Tclose(type);
  H5Sclose(space);
  H5Dclose(visits);
  H5Fclose(file);
  return steps;
}

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

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("memsieve-ledger-" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const std::string& name) const { return path / name; }
};

}  // namespace

/// The library's calls come here, too.
extern "C" int fsync(int file) {
  struct stat info {};
  if (fstat(file, &info) == 0) synced.insert(info.st_ino);
  return static_cast<int>(syscall(SYS_fsync, file));
}

TEST_CASE("what is appended is read back, and an existing ledger is never overwritten", "[ledger]") {
  const Folder folder;
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
  const Folder folder;
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
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path), {}) == 1);
  CHECK_THROWS_WITH(Ledger(folder.file("no/folder.h5"), kHeader), Catch::Contains("cannot be created"));
}

TEST_CASE("flush means that the rows are on the disk, not only with the operating system", "[ledger]") {
  const Folder folder;
  const auto path = folder.file("sync.h5");
  Ledger ledger(path, kHeader);
  ledger.append(rows(0, 10));
  synced.clear();
  ledger.flush();
  CHECK(synced.count(inode(path)) == 1);
}

TEST_CASE("a ledger that has lost rows goes on after those that are left, and says so once", "[ledger]") {
  const Folder folder;
  const auto path = folder.file("behind.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 70));
  }
  {
    Ledger ledger(path, kHeader, 100);
    CHECK_THAT(ledger.note(), Catch::Contains("holds 70 rows, but the checkpoint counts on 100"));
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
  const Folder folder;
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
  const Folder folder;
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
  const Folder folder;
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
  const Folder folder;
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
  }
  REQUIRE(flushed > 0);
  { CHECK(Ledger(path, kHeader, static_cast<int64_t>(flushed)).note().empty()); }
  const auto steps = steps_in(path);
  REQUIRE(steps.size() == flushed);
  for (uint64_t i = 0; i < steps.size(); ++i) REQUIRE(steps[i] == i);
}

TEST_CASE("whatever end of the file a lost machine has taken, the run goes on", "[ledger]") {
  const Folder folder;
  const auto path = folder.file("torn.h5");
  for (const int64_t bytes : {1, 100, 3000, 30000, 60000}) {
    std::filesystem::remove(path);
    {
      Ledger ledger(path, kHeader);
      ledger.append(rows(0, 5000));
      ledger.flush();
      ledger.append(rows(5000, 9000));
      ledger.flush();
    }
    std::filesystem::resize_file(path,
                                 std::max<int64_t>(0, static_cast<int64_t>(std::filesystem::file_size(path)) - bytes));
    {
      Ledger ledger(path, kHeader, 9000);
      CHECK(!ledger.note().empty());
      ledger.append(rows(9000, 9100));
    }
    const auto steps = steps_in(path);
    REQUIRE(steps.size() >= 100);
    for (size_t i = 0; i < steps.size() - 100; ++i) REQUIRE(steps[i] == i);
    for (size_t i = 0; i < 100; ++i) REQUIRE(steps[steps.size() - 100 + i] == 9000 + i);
    CHECK(Ledger(path, kHeader, 9100).note().empty());
  }
}
