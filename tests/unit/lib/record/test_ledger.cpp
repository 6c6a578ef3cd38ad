#include "record/ledger.h"

#include <ATen/ATen.h>
#include <hdf5.h>
#include <memsieve/error.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <sys/wait.h>

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

struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("memsieve-ledger-" + std::to_string(getpid()));
  Folder() { std::filesystem::create_directories(path); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const std::string& name) const { return path / name; }
};

}  // namespace

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

TEST_CASE("a resumed run continues after the checkpoint's rows", "[ledger]") {
  const Folder folder;
  const auto path = folder.file("b.h5");
  {
    Ledger ledger(path, kHeader);
    ledger.append(rows(0, 100));
  }
  {
    Ledger ledger(path, kHeader, 60);
    ledger.append(rows(60, 70));
  }
  CHECK(steps_in(path).size() == 70);
  CHECK(steps_in(path).back() == 69);
  CHECK_THROWS_WITH(Ledger(path, kHeader, 71), Catch::Contains("holds 70 rows, but the checkpoint expects 71"));
  CHECK_THROWS_WITH(Ledger(folder.file("none.h5"), kHeader, 5), Catch::Contains("is missing"));
  CHECK_THROWS_WITH(Ledger(folder.file("no/folder.h5"), kHeader), Catch::Contains("cannot be created"));
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
