// The data set: what is read is what was written, and whatever is wrong is said in one line.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/data/dataset.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>

namespace of_test_dataset {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;

namespace {

DatasetOptions uncached() {
  DatasetOptions options;
  options.cache_bytes = 0;
  return options;
}

// Opens what `breakage` leaves of a sound file and expects a DataError that begins with the path and contains `part`.
void expect_error(const std::string& part, const std::function<void(Hdf5Writer&)>& breakage, bool latents = false) {
  const TemporaryFolder folder;
  const std::string path = folder.file("broken.h5");
  {
    auto file = latents ? write_latents(path) : write_pictures(path);
    breakage(file);
  }
  INFO(part);
  REQUIRE_THROWS_AS(Dataset::open(path), memsieve::DataError);
  REQUIRE_THROWS_WITH(Dataset::open(path), Contains(path + ": ") && Contains(part) && !Contains("\n"));
}

}  // namespace

TEST_CASE("rows come back as they were written, cached or not") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5");
  write_pictures(path);
  for (const auto& options : {DatasetOptions{}, uncached()}) {
    const auto set = Dataset::open(path, options);
    REQUIRE(set.cached() == (options.cache_bytes > 0));
    REQUIRE(set.size() == 6);
    REQUIRE(set.latent_shape() == std::vector<int64_t>{12, 4, 4});
    REQUIRE((set.text_length() == 4 && set.text_dim() == 6));
    REQUIRE(set.captions({5, 0, 5}) ==
            std::vector<std::string>{"caption 5 \xE2\x9C\x93", "caption 0 \xE2\x9C\x93", "caption 5 \xE2\x9C\x93"});
    REQUIRE(set.group_ids() == std::vector<int64_t>{0, 0, 1, 1, 2, 2});
    REQUIRE(at::equal(set.null().text, at::full({4, 6}, 0.5, at::kFloat)));
    const std::vector<int64_t> ids{5, 0, 5, 3};
    const auto index = at::tensor(ids, at::kLong);
    const auto rows = set.load(ids);
    const Codec codec{2, {0.5, 0.4, 0.3}, {0.25, 0.3, 0.35}};
    REQUIRE(at::equal(rows.latents, codec.encode(some_images(6).index_select(0, index))));
    REQUIRE(at::equal(rows.condition.text, some_text(6).index_select(0, index).to(at::kFloat)));
    REQUIRE(at::equal(rows.ids, index));
    REQUIRE(at::equal(set.load_images(ids), some_images(6).index_select(0, index)));
    REQUIRE(at::equal(set.codec()->decode(rows.latents), set.load_images(ids)));
  }
}

TEST_CASE("rows are read one by one, in runs and out of large chunks alike") {
  const TemporaryFolder folder;
  const auto latents = at::arange(48 * 16, at::kFloat).view({48, 4, 2, 2});
  const auto wide = at::arange(48 * 16 * 1024, at::kFloat).view({48, 4, 64, 64});
  const std::vector<std::vector<int64_t>> orders{
      {0}, {47}, {3, 4, 5, 6}, {6, 5, 4, 3}, {9, 1, 9, 2, 1, 40, 10, 41}, {47, 0, 46, 1}};
  for (const auto& [values, chunk] :
       {std::pair{latents, int64_t{0}}, {latents, 1}, {latents, 5}, {wide, 32}, {wide, 1}}) {
    {
      auto file = write_latents(folder.file("set.h5"), 48);
      file.remove("/latents");
      file.tensor("/latents", values, chunk);
    }
    const auto set = Dataset::open(folder.file("set.h5"), uncached());
    for (const auto& ids : orders)
      REQUIRE(at::equal(set.load(ids).latents, values.index_select(0, at::tensor(ids, at::kLong))));
    REQUIRE(set.load({}).latents.size(0) == 0);
  }
}

TEST_CASE("latents may be stored in float16 or float32") {
  for (const auto dtype : {at::kHalf, at::kFloat}) {
    const TemporaryFolder folder;
    write_latents(folder.file("set.h5"), 6, dtype);
    for (const auto& options : {DatasetOptions{}, uncached()}) {
      const auto set = Dataset::open(folder.file("set.h5"), options);
      REQUIRE(set.latent_shape() == std::vector<int64_t>{4, 2, 2});
      REQUIRE_FALSE(set.codec());
      REQUIRE(at::equal(set.load({4}).latents.flatten(), at::arange(64, 80, at::kFloat) / 8));
      REQUIRE_THROWS_WITH(set.load_images({0}), Contains("holds latents"));
    }
  }
}

TEST_CASE("several threads may load at once") {
  const TemporaryFolder folder;
  write_pictures(folder.file("set.h5"), 40);
  const auto set = Dataset::open(folder.file("set.h5"), uncached());
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int64_t i = 0; i < 40; ++i)
        wrong[t] += !at::equal(set.load({i, (i + t) % 40}).condition.text[0], some_text(40)[i].to(at::kFloat));
    });
  for (auto& thread : threads) thread.join();
  REQUIRE(wrong == std::vector<int>(4, 0));
}

TEST_CASE("group ids are optional") {
  const TemporaryFolder folder;
  write_pictures(folder.file("set.h5")).remove("/group_id");
  REQUIRE(Dataset::open(folder.file("set.h5")).group_ids().empty());
}

TEST_CASE("ids out of range are refused") {
  const TemporaryFolder folder;
  write_pictures(folder.file("set.h5"));
  const auto set = Dataset::open(folder.file("set.h5"));
  for (const int64_t id : {-1, 6}) {
    REQUIRE_THROWS_AS(set.load({0, id}), memsieve::DataError);
    REQUIRE_THROWS_AS(set.captions({0, id}), memsieve::DataError);
    REQUIRE_THROWS_WITH(set.load_images({id}),
                        Contains("sample id " + std::to_string(id) + " is out of range") && Contains("has 6 rows"));
  }
}

TEST_CASE("files that are none are refused") {
  const TemporaryFolder folder;
  const auto open = [](const std::string& path) { return [path] { Dataset::open(path); }; };
  REQUIRE_THROWS_WITH(open(folder.file("absent.h5"))(), folder.file("absent.h5") + ": no such file");
  REQUIRE_THROWS_WITH(open(folder.file(""))(), Contains("is not a file"));
  std::ofstream(folder.file("text.h5")) << "not HDF5 at all, but long enough to hold a signature";
  REQUIRE_THROWS_WITH(open(folder.file("text.h5"))(), Contains("is not an HDF5 file"));
  std::ofstream(folder.file("empty.h5")).close();
  REQUIRE_THROWS_AS(open(folder.file("empty.h5"))(), memsieve::DataError);
}

TEST_CASE("truncated files are refused, wherever they end") {
  const TemporaryFolder folder;
  const std::string path = folder.file("set.h5"), cut = folder.file("cut.h5");
  write_pictures(path, 40);
  const auto size = std::filesystem::file_size(path);
  for (const double share : {0.02, 0.3, 0.6, 0.9, 0.999}) {
    std::filesystem::copy_file(path, cut, std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(cut, static_cast<uintmax_t>(share * static_cast<double>(size)));
    INFO(share);
    REQUIRE_THROWS_AS(Dataset::open(cut), memsieve::DataError);
    REQUIRE_THROWS_WITH(Dataset::open(cut), Contains("truncated") && !Contains("\n"));
  }
}

TEST_CASE("another format or version is refused") {
  expect_error("'format' is missing", [](auto& f) { f.remove_attribute("/", "format"); });
  expect_error("'format' is 'other'", [](auto& f) { f.attribute("/", "format", std::string("other")); });
  expect_error("layout version 2", [](auto& f) { f.attribute("/", "version", int64_t{2}); });
  expect_error("'format' must be a string", [](auto& f) { f.attribute("/", "format", int64_t{1}); });
}

TEST_CASE("missing datasets and attributes are named") {
  for (const std::string name : {"/text", "/null_text", "/caption"})
    expect_error(name + ": no such dataset", [&](auto& f) { f.remove(name); });
  expect_error("holds neither /images and /latents", [](auto& f) { f.remove("/images"); });
  expect_error("holds both /images and /latents", [](auto& f) { f.tensor("/latents", at::zeros({6, 4, 2, 2})); });
  expect_error("/images: attribute 'mean' is missing", [](auto& f) { f.replace("/images", some_images(6)); });
}

TEST_CASE("wrong dtypes are named") {
  expect_error("/images: dtype float32, expected uint8",
               [](auto& f) { f.replace("/images", some_images(6).to(at::kFloat)); });
  expect_error("/text: dtype float64, expected float16 or float32",
               [](auto& f) { f.replace("/text", some_text(6).to(at::kDouble)); });
  expect_error("/null_text: dtype int32", [](auto& f) { f.replace("/null_text", at::zeros({4, 6}, at::kInt)); });
  expect_error("/group_id: dtype int32, expected int64",
               [](auto& f) { f.replace("/group_id", at::zeros({6}, at::kInt)); });
  expect_error("/caption: expected one dimension of variable-length",
               [](auto& f) { f.replace("/caption", at::zeros({6})); });
  expect_error(
      "/latents: dtype uint8",
      [](auto& f) {
        f.replace("/latents", at::zeros({6, 4, 2, 2}, at::kByte));
      },
      true);
}

TEST_CASE("wrong shapes are named") {
  expect_error("/images: shape [6, 3, 64], expected 4 dimensions",
               [](auto& f) { f.replace("/images", some_images(6).flatten(2)); });
  expect_error("/text: shape [6, 24], expected 3 dimensions",
               [](auto& f) { f.replace("/text", some_text(6).flatten(1)); });
  expect_error("/null_text: shape 4 x 5, expected 4 x 6", [](auto& f) { f.replace("/null_text", at::zeros({4, 5})); });
  const auto images = [](const at::Tensor& values) {
    return [values](Hdf5Writer& f) {
      f.replace("/images", values);
      f.attribute("/images", "mean", std::vector<double>{0, 0, 0});
      f.attribute("/images", "std", std::vector<double>{1, 1, 1});
      f.attribute("/images", "pixel_unshuffle", int64_t{2});
    };
  };
  for (const double std : {0.0, 1e-50, 1e-39, 1e50})  // what float32 makes 0 or infinity of, or of a quotient
    expect_error("'std' above 0, in float32", [&](Hdf5Writer& f) {
      f.attribute("/images", "std", std::vector<double>{1, std, 1});
    });
  expect_error("has 4 channels, expected 3", images(at::zeros({6, 4, 8, 8}, at::kByte)));
  expect_error("7 x 8 pixels cannot be divided by pixel_unshuffle 2", images(at::zeros({6, 3, 7, 8}, at::kByte)));
}

TEST_CASE("different numbers of rows are named") {
  expect_error("/text: 5 rows, but /images has 6", [](auto& f) { f.replace("/text", some_text(5)); });
  expect_error("/group_id: 7 rows, but /images has 6",
               [](auto& f) { f.replace("/group_id", at::zeros({7}, at::kLong)); });
  expect_error("/caption: 1 rows, but /images has 6", [](auto& f) {
    f.remove("/caption");
    f.strings("/caption", {"one"});
  });
}

TEST_CASE("an empty data set is refused") {
  expect_error("/images: shape [0, 3, 8, 8], which is empty", [](auto& f) {
    f.replace("/images", at::zeros({0, 3, 8, 8}, at::kByte));
  });
}

TEST_CASE("codec attributes out of range are refused") {
  expect_error("'std' above 0", [](auto& f) { f.attribute("/images", "std", std::vector<double>{0.2, 0, 0.2}); });
  expect_error("must be finite", [](auto& f) { f.attribute("/images", "mean", std::vector<double>{0.2, NAN, 0.2}); });
  expect_error("'mean' must hold 3 numbers", [](auto& f) { f.attribute("/images", "mean", std::vector<double>{0.2}); });
  for (const int64_t factor : {0, -2, 65})
    expect_error("'pixel_unshuffle' must be an integer from 1 to 64",
                 [&](auto& f) { f.attribute("/images", "pixel_unshuffle", factor); });
}

TEST_CASE("NaN and Inf are found: on open in small sets, on loading in large ones") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto text = some_text(6);
    text[4][1][2] = bad;
    expect_error("/text: row 4 holds a NaN or Inf", [&](auto& f) { f.replace("/text", text); });
    auto latents = at::zeros({6, 4, 2, 2});
    latents[3][0][0][1] = bad;
    expect_error(
        "/latents: row 3 holds a NaN or Inf", [&](auto& f) { f.replace("/latents", latents); }, true);
    expect_error("/null_text: row 2 holds a NaN or Inf", [&](auto& f) {
      auto null = at::zeros({4, 6});
      null[2][0] = bad;
      f.replace("/null_text", null);
    });
    const TemporaryFolder folder;
    write_pictures(folder.file("large.h5")).replace("/text", text);
    const auto set = Dataset::open(folder.file("large.h5"), uncached());
    REQUIRE_NOTHROW(set.load({0, 5}));
    REQUIRE_THROWS_WITH(set.load({0, 4}), Contains("/text: row 4 holds a NaN or Inf"));
  }
}

TEST_CASE("sets that do not belong together are refused") {
  const TemporaryFolder folder;
  const std::string a = folder.file("a.h5"), b = folder.file("b.h5"), c = folder.file("c.h5");
  write_pictures(a);
  write_pictures(b, 3).attribute("/images", "mean", std::vector<double>{0.5, 0.4, 0.31});
  write_latents(c);
  const auto first = Dataset::open(a);
  REQUIRE_NOTHROW(first.check_matches(Dataset::open(a, uncached())));
  REQUIRE_THROWS_WITH(first.check_matches(Dataset::open(b)), Contains(b) && Contains(a) && Contains("'mean'"));
  REQUIRE_THROWS_WITH(first.check_matches(Dataset::open(c)),
                      Contains("latent shape 4 x 2 x 2") && Contains("12 x 4 x 4"));
}

}  // namespace of_test_dataset
