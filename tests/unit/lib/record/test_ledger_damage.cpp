// Ledgers that were damaged at random: a run goes on with them.
#include <ATen/ATen.h>
#include <support/ledgers.h>

#include <filesystem>
#include <fstream>
#include <random>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

using memsieve::Ledger;
using toy::kHeader;
using toy::rows;
using toy::Scratch;
using toy::steps_in;

TEST_CASE("a byte that has changed anywhere in the ledger keeps no run from going on", "[ledger]") {
  const Scratch folder;
  const auto path = folder.file("bits.h5"), whole = folder.file("whole.h5");
  {
    Ledger ledger(whole, kHeader);
    ledger.append(rows(0, 9000));
  }
  const auto size = std::filesystem::file_size(whole);
  std::mt19937 random(11);
  for (int trial = 0; trial < 60; ++trial) {
    std::filesystem::copy_file(whole, path, std::filesystem::copy_options::overwrite_existing);
    // Half of them in the first kilobytes, where HDF5 keeps what the rest hangs on.
    const auto at = std::uniform_int_distribution<uintmax_t>(0, (trial % 2 == 0 ? size : 2048) - 1)(random);
    INFO("byte " << at);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at)).put(static_cast<char>(random()));
    file.close();
    Ledger ledger(path, kHeader, 9000);
    ledger.append(rows(9000, 9010));
    REQUIRE_NOTHROW(ledger.flush());
  }
}

TEST_CASE("whatever end of the file a lost machine has taken, the run goes on", "[ledger]") {
  const Scratch folder;
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
