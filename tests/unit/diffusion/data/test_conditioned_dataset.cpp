// Data sets made with a VAE and with SDXL's text encoders.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/data/dataset.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>
#include <functional>

namespace of_test_conditioned_dataset {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;

namespace {

void expect_error(const std::string& part, const std::function<void(Hdf5Writer&)>& breakage) {
  const TemporaryFolder folder;
  const std::string path = folder.file("broken.h5");
  {
    auto file = write_sdxl(path);
    breakage(file);
  }
  INFO(part);
  REQUIRE_THROWS_AS(Dataset::open(path), memsieve::DataError);
  REQUIRE_THROWS_WITH(Dataset::open(path), Contains(path + ": ") && Contains(part) && !Contains("\n"));
}

}  // namespace

TEST_CASE("latents come as means and standard deviations, shifted and scaled") {
  const TemporaryFolder folder;
  write_distributions(folder.file("set.h5"));
  for (const int64_t cache : {0, 1 << 20}) {
    const auto set = Dataset::open(folder.file("set.h5"), {.cache_bytes = cache});
    REQUIRE(set.cached() == (cache > 0));
    REQUIRE(set.has_latent_std());
    REQUIRE(set.latent_scale() == LatentScale{1.5305, 0.0609});
    const auto rows = set.load({5, 2});
    const auto stored = at::stack({at::arange(80, 96, at::kFloat), at::arange(32, 48, at::kFloat)}).view({2, 4, 2, 2});
    REQUIRE(at::allclose(rows.latents, (stored / 8 - 0.0609) * 1.5305, 1e-6, 1e-6));
    REQUIRE(at::allclose(rows.latent_std, stored / 512 * 1.5305, 1e-6, 1e-6));
    const auto noise = at::linspace(-2, 2, 32).view({2, 4, 2, 2});
    // Diffusers draws z = mean + std * noise and hands (z - shift) * scaling to the UNet.
    const auto drawn = ((stored / 8 + stored / 512 * noise) - 0.0609) * 1.5305;
    REQUIRE(at::allclose(sample_latents(rows, noise), drawn, 1e-5, 1e-6));
  }
}

TEST_CASE("latents without deviations are what they are, whatever the noise") {
  const TemporaryFolder folder;
  write_latents(folder.file("set.h5"));
  const auto set = Dataset::open(folder.file("set.h5"));
  REQUIRE((!set.has_latent_std() && set.latent_scale() == LatentScale{} && set.pooled_dim() == 0));
  const auto rows = set.load({3, 1});
  REQUIRE_FALSE(rows.latent_std.defined());
  REQUIRE(sample_latents(rows, {}).is_same(rows.latents));
  REQUIRE((!rows.condition.pooled.defined() && !rows.condition.time_ids.defined()));
}

TEST_CASE("mirrored rows: pictures are turned, latents are those of the turned pictures") {
  const TemporaryFolder folder;
  write_pictures(folder.file("pictures.h5"), 6);
  {
    auto file = write_distributions(folder.file("latents.h5"));
    file.tensor("/latents_flipped", at::arange(96, at::kFloat).view({6, 4, 2, 2}) + 1000);
    file.tensor("/latent_std_flipped", at::arange(96, at::kFloat).view({6, 4, 2, 2}) + 7);
  }
  const std::vector<int64_t> ids{5, 2, 5, 0};
  const at::Tensor index = at::tensor(ids, at::kLong), turned = at::tensor({1, 0, 0, 1}).to(at::kBool);
  for (const int64_t cache : {0, 1 << 20}) {
    const auto pictures = Dataset::open(folder.file("pictures.h5"), {.cache_bytes = cache, .flips = true});
    const at::Tensor stored = pictures.load_images(ids);
    const at::Tensor expected = at::where(turned.view({4, 1, 1, 1}), stored.flip({3}), stored);
    REQUIRE(at::equal(pictures.codec()->decode(pictures.load(ids, turned).latents), expected));
    const auto latents = Dataset::open(folder.file("latents.h5"), {.cache_bytes = cache, .flips = true});
    const Rows plain = latents.load(ids), rows = latents.load(ids, turned);
    const at::Tensor other = at::arange(96, at::kFloat).view({6, 4, 2, 2}).index_select(0, index);
    for (int64_t i = 0; i < 4; ++i) {
      const bool is_turned = turned[i].item<bool>();
      REQUIRE(at::allclose(rows.latents[i], is_turned ? (other[i] + 1000 - 0.0609) * 1.5305 : plain.latents[i]));
      REQUIRE(at::allclose(rows.latent_std[i], is_turned ? (other[i] + 7) * 1.5305 : plain.latent_std[i]));
    }
    REQUIRE(at::equal(rows.condition.text, plain.condition.text));
    for (const bool all : {false, true})
      REQUIRE(latents.load(ids, at::full({4}, all, at::kBool)).latents.sizes() == plain.latents.sizes());
  }
}

TEST_CASE("a set of latents without mirrored ones is refused only where they are asked for") {
  const TemporaryFolder folder;
  write_distributions(folder.file("set.h5"));
  REQUIRE_NOTHROW(Dataset::open(folder.file("set.h5")));
  REQUIRE_THROWS_WITH(Dataset::open(folder.file("set.h5"), {.flips = true}),
                      Contains("no /latents_flipped") && Contains("--random-flip") && !Contains("\n"));
  write_distributions(folder.file("half.h5")).tensor("/latents_flipped", at::zeros({6, 4, 2, 2}));
  REQUIRE_THROWS_WITH(Dataset::open(folder.file("half.h5"), {.flips = true}), Contains("no /latent_std_flipped"));
}

TEST_CASE("SDXL's conditioning comes back as it was written") {
  const TemporaryFolder folder;
  write_sdxl(folder.file("set.h5"));
  for (const int64_t cache : {0, 1 << 20}) {
    const auto set = Dataset::open(folder.file("set.h5"), {.cache_bytes = cache});
    REQUIRE(set.pooled_dim() == 5);
    REQUIRE(at::equal(set.null().pooled, at::full({5}, 0.25, at::kFloat)));
    REQUIRE_FALSE(set.null().time_ids.defined());
    const std::vector<int64_t> ids{4, 0, 4};
    const auto index = at::tensor(ids, at::kLong);
    const auto rows = set.load(ids);
    REQUIRE(at::equal(rows.condition.pooled, (at::arange(30, at::kFloat).view({6, 5}) / 16).index_select(0, index)));
    REQUIRE(at::equal(rows.condition.time_ids, (at::arange(36, at::kFloat).view({6, 6}) * 16).index_select(0, index)));
    REQUIRE(rows.condition.pooled.scalar_type() == at::kFloat);
  }
}

TEST_CASE("broken deviations are named") {
  const auto with = [](const std::string& name, const at::Tensor& values) {
    return [=](Hdf5Writer& f) { f.replace(name, values); };
  };
  expect_error("/latent_std: shape 6 x 4 x 2 x 3, expected 6 x 4 x 2 x 2 as in /latents",
               with("/latent_std", at::zeros({6, 4, 2, 3})));
  auto deviations = at::ones({6, 4, 2, 2});
  deviations[2][1][0][0] = -3;
  expect_error("/latent_std: row 2 holds a negative number; store standard deviations",
               with("/latent_std", deviations));
  deviations[1][1][0][0] = NAN;
  expect_error("/latent_std: row 1 holds a NaN", with("/latent_std", deviations));
  expect_error("/latent_std goes with /latents", [](Hdf5Writer& f) {
    f.remove("/latents");
    f.tensor("/images", some_images(6));
    f.attribute("/images", "mean", std::vector<double>{0, 0, 0});
    f.attribute("/images", "std", std::vector<double>{1, 1, 1});
    f.attribute("/images", "pixel_unshuffle", int64_t{2});
  });
  for (const double factor : {0.0, -1.0, static_cast<double>(INFINITY), 1e-60, 1e60})
    expect_error("'scaling_factor' above 0",
                 [&](Hdf5Writer& f) { f.attribute("/latents", "scaling_factor", std::vector<double>{factor}); });
  expect_error("'scaling_factor' must hold 1 number", [&](Hdf5Writer& f) {
    f.attribute("/latents", "scaling_factor", std::vector<double>{1, 2});
  });
}

TEST_CASE("latents that are numbers, but none when they are scaled, name their row") {
  const TemporaryFolder folder;
  {
    auto file = write_latents(folder.file("set.h5"));
    at::Tensor values = at::zeros({6, 4, 2, 2});
    values[4][0][0][0] = 3e38;
    file.replace("/latents", values);
    file.attribute("/latents", "scaling_factor", std::vector<double>{10});
  }
  const auto set = Dataset::open(folder.file("set.h5"));
  REQUIRE_NOTHROW(set.load({0, 1}));
  REQUIRE_THROWS_WITH(set.load({0, 4}), Contains("with 'scaling_factor'") && Contains("row 4 holds a NaN or Inf"));
}

TEST_CASE("half of SDXL's conditioning is refused") {
  expect_error("has /null_pooled but no /pooled", [](Hdf5Writer& f) { f.remove("/pooled"); });
  expect_error("has /pooled but no /null_pooled", [](Hdf5Writer& f) { f.remove("/null_pooled"); });
  expect_error("has /pooled but no /time_ids", [](Hdf5Writer& f) { f.remove("/time_ids"); });
  expect_error("/pooled: 5 rows, but /latents has 6", [](Hdf5Writer& f) { f.replace("/pooled", at::zeros({5, 5})); });
  expect_error("/null_pooled: shape 4, expected 5 as in /pooled",
               [](Hdf5Writer& f) { f.replace("/null_pooled", at::zeros({4})); });
  expect_error("/time_ids: shape 6 x 5, expected 6 x 6", [](Hdf5Writer& f) {
    f.replace("/time_ids", at::zeros({6, 5}));
  });
  expect_error("/time_ids: dtype int64, expected float32", [](Hdf5Writer& f) {
    f.replace("/time_ids", at::zeros({6, 6}, at::kLong));
  });
  expect_error("/null_pooled: row 0 holds a NaN", [](Hdf5Writer& f) { f.replace("/null_pooled", at::full({5}, NAN)); });
}

TEST_CASE("sets made with another VAE or other encoders are refused") {
  const TemporaryFolder folder;
  const std::string a = folder.file("a.h5"), b = folder.file("b.h5"), c = folder.file("c.h5"), d = folder.file("d.h5");
  write_sdxl(a);
  write_sdxl(b, 3).attribute("/latents", "scaling_factor", std::vector<double>{0.18215});
  write_distributions(c);
  write_sdxl(d).remove("/latent_std");
  const auto first = Dataset::open(a);
  REQUIRE_NOTHROW(first.check_matches(Dataset::open(a, {.cache_bytes = 0})));
  REQUIRE_THROWS_WITH(first.check_matches(Dataset::open(b)), Contains(b) && Contains("'scaling_factor'"));
  REQUIRE_THROWS_WITH(first.check_matches(Dataset::open(c)), Contains(c) && Contains("no /pooled"));
  REQUIRE_THROWS_WITH(first.check_matches(Dataset::open(d)), Contains(d) && Contains("no /latent_std"));
}

}  // namespace of_test_conditioned_dataset
