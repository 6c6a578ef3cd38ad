#include "judge/likeness.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <support/thread_ranks.h>

#include <limits>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

using namespace memsieve;

namespace {

at::Tensor yes(int64_t rows) {
  return at::ones({rows}, at::kBool);
}

/// Features around a mean that is far from 0, as embeddings have it.
at::Tensor rows_of(int64_t rows, uint64_t seed) {
  return at::randn({rows, kLikenessWidth}, at::detail::createCPUGenerator(seed)) + 5;
}

/// One that has seen 500 rows, of which slots 0 to 4 were found out.
Likeness known(const at::Tensor& features) {
  Likeness likeness(at::kCPU);
  const auto slot = at::arange(features.size(0));
  likeness.fold(features, slot, yes(features.size(0)), slot < 5);
  return likeness;
}

}  // namespace

TEST_CASE("rows like one that was found out are alike, all others are not, whatever the features' mean", "[likeness]") {
  const auto features = rows_of(500, 1);
  const auto likeness = known(features);
  const auto copies = features.slice(0, 0, 5);
  CHECK(at::allclose(likeness.of(copies, at::arange(5) + 1000), at::ones({5}), 1e-4, 1e-4));
  const auto near = likeness.of(copies + 0.2 * (rows_of(5, 2) - 5), at::arange(5) + 1000);
  CHECK((near > 0.5).all().item<bool>());
  CHECK((near < 1).all().item<bool>());
  CHECK(likeness.of(rows_of(500, 3), at::arange(500) + 1000).mean().item<double>() < 1e-3);
  // Of larger values, but in another direction from the mean.
  CHECK(likeness.of(5 - (copies - 5), at::arange(5) + 1000).max().item<double>() == 0);
}

TEST_CASE("a row is not compared with itself, but with others of its kind", "[likeness]") {
  const auto features = rows_of(500, 1);
  auto likeness = known(features);
  const auto own = features.slice(0, 0, 5);
  CHECK(likeness.of(own, at::arange(5)).max().item<double>() == 0);
  likeness.fold(own, at::arange(5) + 700, yes(5), yes(5));  // their copies are found out, too
  CHECK(at::allclose(likeness.of(own, at::arange(5)), at::ones({5}), 1e-2, 1e-2));
}

TEST_CASE("a row without features, or not counted, leaves no trace", "[likeness]") {
  const auto features = rows_of(500, 1);
  auto likeness = known(features), other = known(features);
  auto more = rows_of(4, 9);
  more[0] = std::numeric_limits<float>::quiet_NaN();
  likeness.fold(more, at::arange(4), at::zeros({4}, at::kBool), yes(4));
  likeness.fold(more.slice(0, 0, 1), at::arange(1), yes(1), yes(1));
  const auto asked = rows_of(50, 10);
  CHECK(likeness.of(more.slice(0, 0, 1), at::arange(1)).item<double>() == 0);
  CHECK(at::isfinite(likeness.of(asked, at::arange(50))).all().item<bool>());
  CHECK(likeness.of(more.slice(0, 1), at::arange(3) + 900).max().item<double>() == 0);
}

TEST_CASE("likeness goes through its state", "[likeness]") {
  const auto features = rows_of(500, 1);
  auto likeness = known(features);
  Likeness resumed(at::kCPU);
  const State from = likeness.state(), to = resumed.state();
  REQUIRE(from.size() == to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    REQUIRE(from[i].first == to[i].first);
    to[i].second->copy_(*from[i].second);
  }
  const auto asked = features + 0.3, slot = at::arange(500) + 2;
  CHECK(at::equal(likeness.of(asked, slot), resumed.of(asked, slot)));
}

TEST_CASE("features of any width and dtype are brought to one width, alike on all ranks and with their angles",
          "[likeness]") {
  const auto g = at::detail::createCPUGenerator(7);
  const auto features = at::randn({64, 12, 50}, g);
  const auto here = project_likeness(features);
  REQUIRE(here.sizes() == at::IntArrayRef({64, kLikenessWidth}));
  const auto errors = toy::on_ranks(2, [&](const auto&) {
    if (!at::equal(project_likeness(features), here)) throw std::runtime_error("ranks differ");
  });
  CHECK(errors == std::vector<std::string>(2));
  CHECK(at::allclose(project_likeness(features.to(at::kBFloat16)), here, 0.05, 0.05));
  const auto cosine = [](const at::Tensor& a, const at::Tensor& b) { return at::cosine_similarity(a, b, 1); };
  const auto near = features + 0.3 * at::randn({64, 12, 50}, g);
  const auto before = cosine(features.flatten(1), near.flatten(1)), after = cosine(here, project_likeness(near));
  CHECK((before - after).abs().mean().item<double>() < 0.05);
  const auto others = cosine(here, here.roll(1, 0));
  CHECK(others.abs().mean().item<double>() < 0.25);
}
