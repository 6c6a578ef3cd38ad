#include "judge/evidence.h"

#include <ATen/ATen.h>

#include <cmath>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

using namespace memsieve;

namespace {
const float kNaN = std::nanf("");
}  // namespace

TEST_CASE("evidence is Stouffer's sum per channel", "[evidence]") {
  const auto windows = at::tensor({1.F, kNaN, 2.F, kNaN, kNaN, kNaN, 3.F, 4.F}).reshape({1, 4, 2});
  const auto e = evidence(windows, at::tensor({1.F, 0.5F}));
  CHECK(e.score.item<float>() == Approx(std::sqrt(3.0) * 2.0 + 0.5 * 4.0));
  CHECK(e.visits.item<int64_t>() == 3);
  CHECK(std::isnan(evidence(at::full({1, 4, 2}, kNaN), at::ones({2})).score.item<float>()));
}

TEST_CASE("evidence of independent standard-normal visits has unit variance for any number of visits", "[evidence]") {
  const auto g = at::randn({20000, 8, 1});
  for (int64_t n : {1, 2, 5, 8}) {
    auto windows = g.clone();
    windows.slice(1, n).fill_(kNaN);
    CHECK(evidence(windows, at::ones({1})).score.std().item<double>() == Approx(1).margin(0.02));
  }
}

TEST_CASE("this visit takes the oldest visit's place", "[evidence]") {
  const auto past = at::arange(8).to(at::kFloat).reshape({2, 4, 1});
  const auto now = with_current(past, at::tensor({5L, 2L}, at::kLong), at::tensor({50.F, 60.F}).reshape({2, 1}),
                                at::tensor({1, 0}, at::kByte).to(at::kBool));
  CHECK(at::equal(now.reshape({-1}), at::tensor({0.F, 50.F, 2.F, 3.F, 4.F, 5.F, 6.F, 7.F})));
}
