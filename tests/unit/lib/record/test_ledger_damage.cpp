// Ledgers that were damaged at random: a run goes on with them.
#include <ATen/ATen.h>
#include <support/ledgers.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <zlib.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_ledger_damage {

using memsieve::Ledger;
using memsieve::testing::flip_bits;
using memsieve::testing::TemporaryFolder;
using toy::kHeader;
using toy::rows;
using toy::steps_in;

TEST_CASE("a byte that has changed anywhere in the ledger keeps no run from going on", "[ledger]") {
  const TemporaryFolder folder;
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

TEST_CASE("a byte that has changed where a ledger holds no rows keeps no run from going on", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("bits.h5"), whole = folder.file("whole.h5");
  Ledger(whole, kHeader).append(rows(0, 10));
  const bool cut = GENERATE(false, true);
  if (cut) Ledger(whole, kHeader, 0).flush();  // an index of chunks stays, which nothing reads
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(whole));
  for (std::streamoff at = 0; at < size; at += 3) {
    std::filesystem::copy_file(whole, path, std::filesystem::copy_options::overwrite_existing);
    INFO("byte " << at << " of " << size << (cut ? ", no rows" : ", ten rows"));
    flip_bits(path, at, 0x10);
    Ledger ledger(path, kHeader, 0);
    ledger.append(rows(0, 3));
    REQUIRE_NOTHROW(ledger.flush());
  }
}

TEST_CASE("whatever end of the file a lost machine has taken, the run goes on", "[ledger]") {
  const TemporaryFolder folder;
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

namespace {

/// A ledger of ten rows, to which `change` is done by HDF5's own functions.
void make_odd(const std::string& path, const std::function<void(hid_t file, hid_t visits)>& change) {
  Ledger(path, kHeader).append(rows(0, 10));
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, access), visits = H5Dopen2(file, "visits", H5P_DEFAULT);
  REQUIRE(visits >= 0);
  change(file, visits);
  H5Dclose(visits);
  H5Fclose(file);
  H5Pclose(access);
}

void require_sound_from_now_on(const std::string& path, int64_t counted) {
  Ledger(path, kHeader, counted).append(rows(10, 13));
  CHECK(Ledger(path, kHeader, counted + 3).note().empty());
  const auto steps = steps_in(path);
  REQUIRE(steps.size() >= 3);
  CHECK(steps.back() == 12);
}

}  // namespace

// All three are of the fuzz target `ledger`.
TEST_CASE("a ledger that claims more rows than its file can hold is set aside, not cut row by row", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("claims.h5");
  make_odd(path, [](hid_t, hid_t visits) {
    const hsize_t many = hsize_t{1} << 58;
    REQUIRE(H5Dset_extent(visits, &many) >= 0);
  });
  CHECK(Ledger(path, kHeader, 10).note().find("more rows than it can hold") != std::string::npos);
  require_sound_from_now_on(path, 10);
}

TEST_CASE("a chunk of the ledger that inflates to less than a chunk is not read", "[ledger]") {
  const TemporaryFolder folder;
  const auto path = folder.file("short.h5");
  make_odd(path, [](hid_t, hid_t visits) {
    const std::vector<unsigned char> little(1000, 1);
    std::vector<unsigned char> stored(compressBound(little.size()));
    uLongf size = stored.size();
    compress(stored.data(), &size, little.data(), little.size());
    const hsize_t first = 0;
    REQUIRE(H5Dwrite_chunk(visits, H5P_DEFAULT, 0, &first, size, stored.data()) >= 0);
  });
  CHECK(Ledger(path, kHeader, 10).note().find("holds 0 rows") != std::string::npos);
  require_sound_from_now_on(path, 10);
}

TEST_CASE("gaps that no ledger can have are damage, whatever their numbers", "[ledger]") {
  const TemporaryFolder folder;
  const std::vector<std::vector<int64_t>> lists = {
      {INT64_MIN, 5}, {3, INT64_MAX, 4, INT64_MAX}, {3, -7}, {3, 1, 3, 1}, {3, 0}};
  for (size_t i = 0; i < lists.size(); ++i) {
    const auto path = folder.file("gaps" + std::to_string(i) + ".h5");
    make_odd(path, [&](hid_t file, hid_t) {
      const hsize_t shape[] = {lists[i].size() / 2, 2};
      const hid_t space = H5Screate_simple(2, shape, nullptr);
      const hid_t gaps = H5Acreate2(file, "gaps", H5T_NATIVE_INT64, space, H5P_DEFAULT, H5P_DEFAULT);
      REQUIRE(H5Awrite(gaps, H5T_NATIVE_INT64, lists[i].data()) >= 0);
      H5Aclose(gaps);
      H5Sclose(space);
    });
    CHECK(Ledger(path, kHeader, 20).note().find("its attribute gaps") != std::string::npos);
    require_sound_from_now_on(path, 20);
  }
}

}  // namespace of_test_ledger_damage
