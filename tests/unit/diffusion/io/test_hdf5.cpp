// HDF5 files from strangers: what lies elsewhere, claims more than there is or is not what is asked for is refused by
// name, before anything is read.
#include <ATen/ATen.h>
#include <diffusion/data/dataset.h>
#include <memsieve/error.h>
#include <support/hdf5_writer.h>
#include <zlib.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <functional>

namespace of_test_hdf5 {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;
using memsieve::DataError;
namespace fs = std::filesystem;

namespace {

using Sizes = std::vector<hsize_t>;

// Opens what `breakage` leaves of a sound set of latents and expects a DataError that begins with the path
// and the object.
void expect_error(const std::string& object, const std::string& why, const std::function<void(Hdf5Writer&)>& breakage) {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  folder.file("other.h5");
  {
    auto file = write_latents(path);
    breakage(file);
  }
  INFO(object << ": " << why);
  REQUIRE_THROWS_AS(Dataset::open(path), DataError);
  REQUIRE_THROWS_WITH(Dataset::open(path), Contains(path + ": " + object) && Contains(why) && !Contains("\n"));
}

Hdf5Handle created_with(const std::function<void(hid_t)>& set) {
  Hdf5Handle how(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  set(how.get());
  return how;
}

// A dataset of float32 that nothing is written to; it replaces what there is.
void unwritten(Hdf5Writer& file, const std::string& name, const Sizes& shape, const Hdf5Handle& how) {
  H5Ldelete(file.id(), name.c_str(), H5P_DEFAULT);
  const Hdf5Handle space(H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr), H5Sclose);
  const Hdf5Handle data(
      H5Dcreate2(file.id(), name.c_str(), H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, how.get(), H5P_DEFAULT), H5Dclose);
  REQUIRE(data);
}

Hdf5Handle in_chunks(const Sizes& chunk) {
  return created_with([&](hid_t how) { H5Pset_chunk(how, static_cast<int>(chunk.size()), chunk.data()); });
}

void attribute_of_texts(Hdf5Writer& file, const std::string& name, size_t size, hsize_t count) {
  const Hdf5Handle root(H5Oopen(file.id(), "/", H5P_DEFAULT), H5Oclose);
  H5Adelete(root.get(), name.c_str());
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate_simple(1, &count, nullptr), H5Sclose);
  H5Tset_size(type.get(), size);
  const Hdf5Handle attribute(H5Acreate2(root.get(), name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                             H5Aclose);
  const std::string many(size * count, 'x');
  REQUIRE(H5Awrite(attribute.get(), type.get(), many.data()) >= 0);
}

}  // namespace

TEST_CASE("an attribute of more values than are asked for is refused, not written past the room for one") {
  expect_error("root attribute 'format'", "must be one string",
               [](auto& f) { attribute_of_texts(f, "format", 16, 4000); });
  expect_error("root attribute 'version'", "must be an integer",
               [](auto& f) { attribute_of_texts(f, "version", 16, 1); });
  expect_error("root attribute 'version'", "must be an integer", [](auto& f) {
    f.attribute("/", "version", std::vector<double>{1, 1, 1});
  });
  expect_error("/latents: attribute 'scaling_factor'", "must hold 1 number",
               [](auto& f) { f.attribute("/latents", "scaling_factor", std::vector<double>(500, 1.0)); });
  expect_error("/latents: attribute 'scaling_factor'", "must hold 1 number",
               [](auto& f) { f.attribute("/latents", "scaling_factor", std::string("0.18215")); });
}

TEST_CASE("numbers of a file's own making are refused before HDF5 converts them") {
  const auto odd = [](hid_t like, const auto& change) {
    return [like, change](Hdf5Writer& f) {
      const Hdf5Handle latents(H5Oopen(f.id(), "/latents", H5P_DEFAULT), H5Oclose), type(H5Tcopy(like), H5Tclose);
      change(type.get());
      const Hdf5Handle one(H5Screate(H5S_SCALAR), H5Sclose);
      REQUIRE(Hdf5Handle(H5Acreate2(latents.get(), "scaling_factor", type.get(), one.get(), H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose));
    };
  };
  expect_error("/latents: attribute 'scaling_factor'", "must hold 1 number",
               odd(H5T_STD_I64LE, [](hid_t type) { H5Tset_precision(type, 5); }));
  expect_error("/latents: attribute 'scaling_factor'", "must hold 1 number",
               odd(H5T_IEEE_F64LE, [](hid_t type) { H5Tset_ebias(type, 3); }));
}

TEST_CASE("a format of fixed length is as good as one of variable length") {
  const TemporaryFolder folder;
  {
    auto file = write_latents(folder.file("set.h5"));
    const Hdf5Handle root(H5Oopen(file.id(), "/", H5P_DEFAULT), H5Oclose);
    H5Adelete(root.get(), "format");
    const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
    H5Tset_size(type.get(), 16);
    const Hdf5Handle attribute(H5Acreate2(root.get(), "format", type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
                               H5Aclose);
    H5Awrite(attribute.get(), type.get(), "memsieve-dataset");
  }
  REQUIRE(Dataset::open(folder.file("set.h5")).size() == 6);
}

TEST_CASE("rows that lie in other files are refused by name") {
  const auto link = [](Hdf5Writer& f, const std::string& name) {
    H5Ldelete(f.id(), name.c_str(), H5P_DEFAULT);
    H5Lcreate_external("/somewhere/other.h5", "/rows", f.id(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT);
  };
  for (const std::string name : {"/text", "/latents", "/caption", "/null_text", "/group_id"})
    expect_error(name, "external link to /somewhere/other.h5:/rows", [&](auto& f) { link(f, name); });
  expect_error("/text", "external link to /somewhere/other.h5:/rows", [&](auto& f) {
    link(f, "/hidden");
    f.remove("/text");
    H5Lcreate_soft("/hidden", f.id(), "/text", H5P_DEFAULT, H5P_DEFAULT);
  });
  expect_error("/latents", "external storage", [](auto& f) {
    unwritten(f, "/latents", {6, 4, 2, 2},
              created_with([](hid_t how) { H5Pset_external(how, "/etc/passwd", 0, H5F_UNLIMITED); }));
  });
  expect_error("/latents", "virtual dataset", [](auto& f) {
    const Sizes shape{6, 4, 2, 2};
    const Hdf5Handle space(H5Screate_simple(4, shape.data(), nullptr), H5Sclose);
    unwritten(f, "/latents", shape,
              created_with([&](hid_t how) { H5Pset_virtual(how, space.get(), "/etc/passwd", "/rows", space.get()); }));
  });
}

TEST_CASE("a link within the file leads to its rows") {
  const TemporaryFolder folder;
  {
    auto file = write_latents(folder.file("set.h5"));
    H5Lmove(file.id(), "/text", file.id(), "/states", H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_soft("/states", file.id(), "/text", H5P_DEFAULT, H5P_DEFAULT);
  }
  REQUIRE(Dataset::open(folder.file("set.h5")).text_dim() == 6);
}

TEST_CASE("filters other than those that are documented are refused by name") {
  expect_error("/latents", "HDF5's filter " + std::to_string(H5Z_FILTER_SCALEOFFSET), [](auto& f) {
    auto how = in_chunks({1, 4, 2, 2});
    H5Pset_scaleoffset(how.get(), H5Z_SO_FLOAT_DSCALE, 3);
    unwritten(f, "/latents", {6, 4, 2, 2}, how);
  });
}

TEST_CASE("chunks are not inflated beyond what the shape needs") {
  // One row is asked for; its chunk would take 4 GiB less a row.
  expect_error("/text", "are far larger than itself", [](auto& f) {
    f.remove("/text");
    const Sizes shape{6, 4, 6}, most{H5S_UNLIMITED, 4, 6}, chunk{uint64_t{1} << 24, 4, 6};
    const auto how = in_chunks(chunk);
    H5Pset_deflate(how.get(), 9);
    const Hdf5Handle space(H5Screate_simple(3, shape.data(), most.data()), H5Sclose);
    const Hdf5Handle data(H5Dcreate2(f.id(), "/text", H5T_IEEE_F32LE, space.get(), H5P_DEFAULT, how.get(), H5P_DEFAULT),
                          H5Dclose);
    REQUIRE(data);
  });
}

namespace {

// A set whose /text has a chunk for each row, that of row 1 as given; the others hold ones.
void write_text_chunk(const std::string& path, const Hdf5Handle& how, const std::vector<unsigned char>& stored) {
  auto file = write_latents(path);
  const hsize_t chunk[3] = {1, 4, 6}, row[3] = {1, 0, 0};
  H5Pset_chunk(how.get(), 3, chunk);
  unwritten(file, "/text", {6, 4, 6}, how);
  const Hdf5Handle data(H5Dopen2(file.id(), "/text", H5P_DEFAULT), H5Dclose);
  const auto ones = at::ones({6, 4, 6}, at::kFloat);
  REQUIRE(H5Dwrite(data.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, ones.const_data_ptr()) >= 0);
  REQUIRE(H5Dwrite_chunk(data.get(), H5P_DEFAULT, 0, row, stored.size(), stored.data()) >= 0);
}

std::vector<unsigned char> deflated(size_t zeros) {
  const std::vector<unsigned char> from(zeros);
  std::vector<unsigned char> to(compressBound(zeros));
  uLongf size = to.size();
  REQUIRE(compress(to.data(), &size, from.data(), zeros) == Z_OK);
  to.resize(size);
  return to;
}

}  // namespace

TEST_CASE("a chunk that inflates to more or less than its shape needs is not inflated by HDF5") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  const size_t row = 4 * 6 * sizeof(float);
  const DatasetOptions uncached{.cache_bytes = 0};
  for (const size_t size : {row, row - 1, row + 1, size_t{1} << 26}) {
    write_text_chunk(path, created_with([](hid_t how) { H5Pset_deflate(how, 6); }), deflated(size));
    const auto set = Dataset::open(path, uncached);
    REQUIRE(set.load({0, 2, 5}).condition.text.min().item<float>() == 1);
    INFO(size);
    if (size == row) {
      REQUIRE(set.load({1}).condition.text.abs().max().item<float>() == 0);
    } else {
      REQUIRE_THROWS_WITH(set.load({0, 1}), Contains("/text: row 1: its chunk does not hold what its shape needs"));
      REQUIRE_THROWS_AS(Dataset::open(path), DataError);
    }
  }
  // Without deflate a chunk that is too short would be read past its end.
  for (const size_t size : {row + 4, row + 3, size_t{8}}) {
    write_text_chunk(path, created_with([](hid_t how) { H5Pset_fletcher32(how); }), std::vector<unsigned char>(size));
    const auto set = Dataset::open(path, uncached);
    if (size == row + 4)
      REQUIRE(set.load({1}).condition.text.abs().max().item<float>() == 0);
    else
      REQUIRE_THROWS_WITH(set.load({1}), Contains("/text: row 1: its chunk does not hold what its shape needs"));
  }
}

TEST_CASE("rows come back through any order of filters, chunks at the edge and chunks left unfiltered") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  const auto smooth = at::arange(6 * 16, at::kFloat).view({6, 4, 2, 2});
  const auto noise = smooth.mul(12345.678).sin();  // hardly compressible: deflate is left out for its chunks
  using Filters = std::vector<std::function<void(hid_t)>>;
  const auto deflate = [](hid_t how) { H5Pset_deflate(how, 9); };
  const auto shuffle = [](hid_t how) { H5Pset_shuffle(how); };
  const auto checksum = [](hid_t how) { H5Pset_fletcher32(how); };
  for (const auto& filters : {Filters{deflate}, {shuffle, deflate, checksum}, {checksum, deflate}, {checksum, shuffle}})
    for (const Sizes& chunk : {Sizes{1, 4, 2, 2}, {4, 3, 2, 1}, {6, 4, 2, 2}})
      for (const auto& values : {smooth, noise}) {
        auto file = write_latents(path);
        const auto how = in_chunks(chunk);
        for (const auto& add : filters) add(how.get());
        unwritten(file, "/latents", {6, 4, 2, 2}, how);
        {
          const Hdf5Handle data(H5Dopen2(file.id(), "/latents", H5P_DEFAULT), H5Dclose);
          H5Dwrite(data.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.const_data_ptr());
          H5Fflush(file.id(), H5F_SCOPE_LOCAL);
        }
        file = Hdf5Writer(folder.file("next.h5"));  // closes the first
        for (const auto& options : {DatasetOptions{}, DatasetOptions{.cache_bytes = 0}}) {
          const auto set = Dataset::open(path, options);
          REQUIRE(at::equal(set.load({5, 0, 3}).latents, values.index_select(0, at::tensor({5, 0, 3}, at::kLong))));
        }
      }
}

TEST_CASE("what the file cannot hold is refused from its header") {
  const hsize_t many = hsize_t{1} << 40, wide = hsize_t{1} << 31;
  const Hdf5Handle plain = created_with([](hid_t) {});
  const std::string cannot = "is more than a file of ";
  expect_error("/text", cannot, [&](auto& f) { unwritten(f, "/text", {many, 4, 6}, in_chunks({1, 4, 6})); });
  expect_error("/text", cannot, [&](auto& f) {
    const auto deflated = in_chunks({1, 4, 6});
    H5Pset_deflate(deflated.get(), 1);
    unwritten(f, "/latents", {many, 4, 2, 2}, in_chunks({1, 4, 2, 2}));
    unwritten(f, "/text", {many, 4, 6}, deflated);
  });
  // Rows of zeros that were never written, as a file of prompts has, must not have more rows than there are texts.
  expect_error("/text", "6 rows, but /latents has 1099511627776", [&](auto& f) {
    unwritten(f, "/latents", {many, 4, 2, 2}, in_chunks({1, 4, 2, 2}));
  });
  expect_error("/text", "6 rows, but /latents has 1099511627776", [&](auto& f) {
    const auto deflated = in_chunks({1, 4, 2, 2});
    H5Pset_deflate(deflated.get(), 1);
    unwritten(f, "/latents", {many, 4, 2, 2}, deflated);
  });
  expect_error("/latents", "is too large", [&](auto& f) {
    unwritten(f, "/latents", {6, wide, wide, 2}, in_chunks({1, 4, 2, 2}));
  });
  expect_error("/latents", "has rows of more than 1 GiB", [&](auto& f) {
    unwritten(f, "/latents", {6, 1 << 15, 1 << 15, 2}, in_chunks({1, 4, 2, 2}));
  });
  expect_error("/null_text", cannot, [&](auto& f) { unwritten(f, "/null_text", {4, 600}, plain); });
  expect_error("/group_id", cannot, [&](auto& f) {
    f.remove("/group_id");
    const Hdf5Handle space(H5Screate_simple(1, &many, nullptr), H5Sclose);
    const Hdf5Handle data(
        H5Dcreate2(f.id(), "/group_id", H5T_STD_I64LE, space.get(), H5P_DEFAULT, in_chunks({1024}).get(), H5P_DEFAULT),
        H5Dclose);
    REQUIRE(data);
  });
}

TEST_CASE("latents that were never written are zeros, as in a file of prompts") {
  const TemporaryFolder folder;
  {
    auto file = write_latents(folder.file("set.h5"));
    unwritten(file, "/latents", {6, 4, 64, 64}, in_chunks({1, 4, 64, 64}));
  }
  REQUIRE(Dataset::open(folder.file("set.h5")).load({5}).latents.abs().max().item<float>() == 0);
}

TEST_CASE("a byte that has changed is found by its checksum") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  const auto values = at::arange(6 * 16, at::kFloat).view({6, 4, 2, 2});
  haddr_t place = 0;
  {
    auto file = write_latents(path);
    const auto how = in_chunks({1, 4, 2, 2});
    H5Pset_fletcher32(how.get());
    unwritten(file, "/latents", {6, 4, 2, 2}, how);
    const Hdf5Handle data(H5Dopen2(file.id(), "/latents", H5P_DEFAULT), H5Dclose);
    REQUIRE(H5Dwrite(data.get(), H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.const_data_ptr()) >= 0);
    H5Fflush(file.id(), H5F_SCOPE_LOCAL);
    const hsize_t row[4] = {3, 0, 0, 0};
    unsigned mask = 0;
    hsize_t bytes = 0;
    REQUIRE(H5Dget_chunk_info_by_coord(data.get(), row, &mask, &place, &bytes) >= 0);
    REQUIRE(bytes == 16 * sizeof(float) + 4);
  }
  const DatasetOptions uncached{.cache_bytes = 0};
  REQUIRE(at::equal(Dataset::open(path, uncached).load({3}).latents, values.slice(0, 3, 4)));
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(place + 5));
    file.put('x');
  }
  const auto set = Dataset::open(path, uncached);
  REQUIRE_NOTHROW(set.load({2, 4}));
  REQUIRE_THROWS_WITH(set.load({3}), Contains(path + ": /latents: row 3 cannot be read; the file is damaged"));
  REQUIRE_THROWS_AS(Dataset::open(path), DataError);
}

TEST_CASE("captions may be bytes and offsets, which need no heap") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  const std::vector<std::string> texts{"a \xE2\x9C\x93", "", "two\nlines", "d", "", "f"};
  {
    auto file = write_latents(path);
    file.remove("/caption");
    file.texts("/caption", texts);
  }
  const auto set = Dataset::open(path);
  REQUIRE(set.captions({0, 1, 2, 3, 4, 5}) == texts);
  REQUIRE(set.captions({5, 0, 5}) == std::vector<std::string>{"f", texts[0], "f"});
  {
    auto file = write_latents(folder.file("empty.h5"));
    file.remove("/caption");
    file.texts("/caption", std::vector<std::string>(6));
  }
  REQUIRE(Dataset::open(folder.file("empty.h5")).captions({0, 5}) == std::vector<std::string>{"", ""});
}

TEST_CASE("captions that are wrong are named") {
  const std::vector<std::string> texts{"a", "b", "c", "d", "e", "f"};
  const auto as_bytes = [&](Hdf5Writer& f) {
    f.remove("/caption");
    f.texts("/caption", texts);
  };
  expect_error("holds both /caption and /caption_bytes", "exactly one", [&](auto& f) { f.texts("/caption", texts); });
  expect_error("/caption_offsets", "no such dataset", [&](auto& f) {
    as_bytes(f);
    f.remove("/caption_offsets");
  });
  expect_error("/caption_bytes", "no such dataset", [&](auto& f) {
    as_bytes(f);
    f.remove("/caption_bytes");
  });
  expect_error("/caption", "5 rows, but /latents has 6", [&](auto& f) {
    as_bytes(f);
    f.replace("/caption_offsets", at::arange(6, at::kLong));
  });
  expect_error("/caption_bytes", "dtype int64, expected uint8", [&](auto& f) {
    as_bytes(f);
    f.replace("/caption_bytes", at::arange(6, at::kLong));
  });
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0, 1, 2, 9, 4, 5, 6}, {0, 1, -2, 3, 4, 5, 6}, {0, 1, 2, int64_t{1} << 62, 4, 5, 6}}) {
    const TemporaryFolder folder;
    {
      auto file = write_latents(folder.file("set.h5"));
      as_bytes(file);
      file.replace("/caption_offsets", at::tensor(offsets, at::kLong));
    }
    const auto set = Dataset::open(folder.file("set.h5"));
    REQUIRE(set.captions({0, 5}) == std::vector<std::string>{"a", "f"});
    REQUIRE_THROWS_WITH(set.captions({0, 1, 2}), Contains("/caption_offsets: row ") && Contains("damaged"));
  }
}

}  // namespace of_test_hdf5
