// Texts of variable length in files from strangers: lengths, addresses and what lies there are claims, and HDF5
// believes them.
#include <ATen/ATen.h>
#include <diffusion/data/dataset.h>
#include <diffusion/io/hdf5_file.h>
#include <diffusion/io/hdf5_open.h>
#include <memsieve/error.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own
#include <cstring>
#include <numeric>

namespace of_test_hdf5_text {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;
using memsieve::DataError;

namespace {

// Puts another length in the place of each text of `length` bytes: 4 bytes, the address of a heap ("GCOL"), a number.
int claim(const std::string& path, uint32_t length, uint32_t claimed) {
  std::string bytes = read_file(path);
  int found = 0;
  for (size_t at = 0; at + 16 <= bytes.size(); ++at) {
    uint32_t said = 0;
    uint64_t heap = 0;
    std::memcpy(&said, &bytes[at], sizeof said);
    std::memcpy(&heap, &bytes[at + sizeof said], sizeof heap);
    if (said != length || heap > bytes.size() - 4 || bytes.compare(heap, 4, "GCOL") != 0) continue;
    std::memcpy(&bytes[at], &claimed, sizeof claimed);
    ++found;
  }
  write_file(path, bytes);
  return found;
}

/// Captions of variable length in chunks of 4 rows.
void write_captions_in_chunks(Hdf5Writer& file) {
  const hsize_t rows = 6, chunk = 4;
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate_simple(1, &rows, nullptr), H5Sclose),
      how(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Tset_size(type.get(), H5T_VARIABLE);
  H5Pset_chunk(how.get(), 1, &chunk);
  const Hdf5Handle data(H5Dcreate2(file.id(), "/caption", type.get(), space.get(), H5P_DEFAULT, how.get(), H5P_DEFAULT),
                        H5Dclose);
  const char* texts[rows] = {"one", nullptr, "three", "", "fifth text", "six"};
  REQUIRE(H5Dwrite(data.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, texts) >= 0);
}

size_t room_for_chunks(const std::string& path, const std::string& name) {
  int descriptor = -1;
  const Hdf5Handle file = open_hdf5(path, descriptor), data = open_hdf5_dataset(file.get(), name, path + ": " + name),
                   access(H5Dget_access_plist(data.get()), H5Pclose);
  size_t slots = 0, bytes = 0;
  double preemption = 0;
  REQUIRE(H5Pget_chunk_cache(access.get(), &slots, &bytes, &preemption) >= 0);
  return bytes;
}

}  // namespace

TEST_CASE("texts of variable length come back, wherever they lie") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  std::vector<std::string> texts{"", "a \xE2\x9C\x93", std::string(100000, 'x'), "two\nlines"};
  for (int i = 0; i < 1000; ++i) texts.push_back(std::string(i % 9, 'a' + i % 26));
  Hdf5Writer(path).strings("/caption", texts);
  std::vector<int64_t> all(texts.size());
  std::iota(all.begin(), all.end(), 0);
  REQUIRE(Hdf5File(path).strings("/caption").read_rows(all) == texts);

  const auto made =
      GENERATE(table<size_t, hsize_t, bool>({{8, 0, false}, {4, 512, false}, {2, 0, true}, {8, 1024, true}}));
  const auto& [bytes, before, latest] = made;
  const Hdf5Handle how(H5Pcreate(H5P_FILE_CREATE), H5Pclose), access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_sizes(how.get(), bytes, bytes);
  H5Pset_userblock(how.get(), before);
  if (latest) H5Pset_libver_bounds(access.get(), H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  {
    Hdf5Writer file(Hdf5Handle(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, how.get(), access.get()), H5Fclose));
    file.attribute("/", "format", std::string("memsieve-dataset"));
    file.attribute("/", "none", std::string());
    write_captions_in_chunks(file);
  }
  const Hdf5File file(path);
  REQUIRE(file.root_text("format") == "memsieve-dataset");
  REQUIRE(file.root_text("none").empty());
  REQUIRE(file.strings("/caption").read_rows({4, 1, 5, 3}) == std::vector<std::string>{"fifth text", "", "six", ""});
}

TEST_CASE("a text of another length than the file holds is refused before there is room for it") {
  const TemporaryFolder folder;
  const bool chunked = GENERATE(false, true);
  const uint32_t claimed = GENERATE(0xf0000000, 11, 9);
  const auto write = [&](const std::string& name) {
    auto file = write_latents(folder.file(name));
    file.remove("/caption");
    if (chunked)
      write_captions_in_chunks(file);
    else
      file.strings("/caption", {"one", "", "three", "", "fifth text", "six"});
  };
  const std::string path = folder.file("set.h5"), other = folder.file("other.h5");
  write("set.h5");
  REQUIRE(claim(path, 10, claimed) == 1);
  const auto set = Dataset::open(path);
  REQUIRE(set.captions({0, 1, 5}) == std::vector<std::string>{"one", "", "six"});
  const std::string why = " is a text of " + std::to_string(claimed) + " bytes that the file does not hold";
  REQUIRE_THROWS_WITH(set.captions({4}), Contains(path + ": /caption: row 4" + why) && !Contains("\n"));
  write("other.h5");
  REQUIRE(claim(other, 16, claimed) == 1);  // "memsieve-dataset"
  REQUIRE_THROWS_WITH(Dataset::open(other), Contains(other + ": root attribute 'format'" + why));
}

TEST_CASE("whatever has become of the place where texts lie, they are read or refused") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  write_latents(path);
  const std::string whole = read_file(path);
  const size_t heap = whole.find("GCOL"), used = whole.find("caption 5", heap) + 40 - heap;
  REQUIRE(used < 400);
  int refused = 0;
  for (const char value : {'\0', '\1', '\x7f', '\xff'})
    for (size_t at = heap; at < heap + used; ++at) {
      INFO("byte " << at - heap << " is " << static_cast<int>(value));
      std::string bytes = whole;
      bytes[at] = value;
      write_file(path, bytes);
      size_t read = 6;
      try {
        read = Dataset::open(path).captions({0, 1, 2, 3, 4, 5}).size();
      } catch (const DataError&) {
        ++refused;
      }
      REQUIRE(read == 6);
    }
  REQUIRE(refused > 100);
}

TEST_CASE("a chunk without filters that is shorter than its shape needs is not read past its end") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  const auto values = at::arange(6 * 16, at::kFloat).view({6, 4, 2, 2});
  {
    auto file = write_latents(path);
    file.remove("/latents");
    const hsize_t shape[4] = {6, 4, 2, 2}, chunk[4] = {2, 4, 2, 2}, first[4] = {0, 0, 0, 0};
    const Hdf5Handle space(H5Screate_simple(4, shape, nullptr), H5Sclose), how(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_chunk(how.get(), 4, chunk);
    const Hdf5Handle data(
        H5Dcreate2(file.id(), "/latents", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, how.get(), H5P_DEFAULT), H5Dclose);
    REQUIRE(H5Dwrite(data.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.const_data_ptr()) >= 0);
    const float few[2] = {0, 1};
    REQUIRE(H5Dwrite_chunk(data.get(), H5P_DEFAULT, 0, first, sizeof few, few) >= 0);
  }
  // HDF5 would keep the 8 bytes that there are and take 128 of them; without room to keep chunks it reads the file.
  REQUIRE(room_for_chunks(path, "/latents") == 0);
  const auto latents = Dataset::open(path, {.cache_bytes = 0}).load({4, 0, 3}).latents;
  REQUIRE(at::equal(latents[0], values[4]));
  REQUIRE(at::equal(latents[2], values[3]));
  REQUIRE(at::equal(latents[1].flatten().slice(0, 0, 2), values[0].flatten().slice(0, 0, 2)));
}

TEST_CASE("there is room for a chunk that must be inflated, and for no more") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  write_latents(path).tensor("/large", at::arange(1 << 20, at::kInt), 1 << 19);  // chunks of 2 MiB
  REQUIRE(room_for_chunks(path, "/large") == size_t{1} << 21);
}

}  // namespace of_test_hdf5_text
