// Texts of variable length in files from strangers: their lengths are claims, and HDF5 believes them.
#include <ATen/ATen.h>
#include <diffusion/data/dataset.h>
#include <diffusion/io/hdf5_open.h>
#include <memsieve/error.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own
#include <cstring>

namespace of_test_hdf5_text {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;
using memsieve::DataError;

namespace {

constexpr uint32_t kClaimed = 0xf0000000;

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

TEST_CASE("a caption that claims to be longer than its file is refused before there is room for it") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  const bool chunked = GENERATE(false, true);
  {
    auto file = write_latents(path);
    file.remove("/caption");
    if (chunked)
      write_captions_in_chunks(file);
    else
      file.strings("/caption", {"one", "", "three", "", "fifth text", "six"});
  }
  REQUIRE(Dataset::open(path).captions({4, 1, 5}) == std::vector<std::string>{"fifth text", "", "six"});
  REQUIRE(claim(path, 10, kClaimed) == 1);
  const auto set = Dataset::open(path);
  REQUIRE(set.captions({0, 5}) == std::vector<std::string>{"one", "six"});
  REQUIRE_THROWS_WITH(
      set.captions({4}),
      Contains(path + ": /caption: row 4 would be a text of 4026531840 bytes in a ") && !Contains("\n"));
}

TEST_CASE("so is an attribute") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  write_latents(path);
  REQUIRE(claim(path, 16, kClaimed) == 1);  // "memsieve-dataset"
  REQUIRE_THROWS_WITH(Dataset::open(path),
                      Contains("root attribute 'format' would be a text of 4026531840 bytes in a file of "));
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
