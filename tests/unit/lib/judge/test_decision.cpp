#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "judge/decision.h"
#include "judge/evidence.h"

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

using namespace memsieve;

namespace {
const float kNaN = std::nanf("");
Levels levels(double drop, double release) {
  return {at::full({}, drop), at::full({}, release)};
}
}  // namespace

TEST_CASE("evidence is Stouffer's sum per channel", "[decision]") {
  const auto windows = at::tensor({1.F, kNaN, 2.F, kNaN, kNaN, kNaN, 3.F, 4.F}).reshape({1, 4, 2});
  const auto e = evidence(windows, at::tensor({1.F, 0.5F}));
  CHECK(e.score.item<float>() == Approx(std::sqrt(3.0) * 2.0 + 0.5 * 4.0));
  CHECK(e.visits.item<int64_t>() == 3);
  CHECK(std::isnan(evidence(at::full({1, 4, 2}, kNaN), at::ones({2})).score.item<float>()));
}

TEST_CASE("evidence of independent standard-normal visits has unit variance for any number of visits", "[decision]") {
  const auto g = at::randn({20000, 8, 1});
  for (int64_t n : {1, 2, 5, 8}) {
    auto windows = g.clone();
    windows.slice(1, n).fill_(kNaN);
    CHECK(evidence(windows, at::ones({1})).score.std().item<double>() == Approx(1).margin(0.02));
  }
}

TEST_CASE("this visit takes the oldest visit's place", "[decision]") {
  const auto past = at::arange(8).to(at::kFloat).reshape({2, 4, 1});
  const auto now = with_current(past, at::tensor({5L, 2L}, at::kLong), at::tensor({50.F, 60.F}).reshape({2, 1}),
                                at::tensor({1, 0}, at::kByte).to(at::kBool));
  CHECK(at::equal(now.reshape({-1}), at::tensor({0.F, 50.F, 2.F, 3.F, 4.F, 5.F, 6.F, 7.F})));
}

namespace {

/// The level that a share `rate` of the scores exceeds.
at::Tensor held_out_level(double rate, const at::Tensor& scores, bool conformal) {
  return held_out_levels(scores, at::tensor({1 - rate}, at::kDouble), conformal, 20);
}

}  // namespace

TEST_CASE("held-out levels keep their promised false-drop rate", "[decision]") {
  at::manual_seed(1);
  for (const double rate : {0.01, 0.1}) {
    for (const bool conformal : {false, true}) {
      double exceeded = 0;
      const int trials = 400;
      for (int i = 0; i < trials; ++i) {
        const auto level = held_out_level(rate, at::randn({300}), conformal);
        exceeded += (at::randn({500}) > level).to(at::kFloat).mean().item<double>() / trials;
      }
      CHECK(exceeded == Approx(rate).margin(0.2 * rate));
    }
  }
}

TEST_CASE("too few held-out rows give no level rather than a wrong one", "[decision]") {
  CHECK(std::isinf(held_out_level(0.1, at::randn({19}), false).item<float>()));
  CHECK(std::isinf(held_out_level(0.01, at::randn({50}), true).item<float>()));  // needs at least 99
  CHECK(std::isinf(held_out_level(0.01, at::full({50}, kNaN), false).item<float>()));
}

TEST_CASE("training levels: quantile and robust z", "[decision]") {
  const auto scores = at::cat({at::arange(101).to(at::kFloat), at::full({50}, kNaN)});
  const auto quantiles = training_levels(scores, ThresholdKind::quantile, at::tensor({0.9F, 0.5F}), 20);
  CHECK(at::allclose(quantiles, at::tensor({90.F, 50.F})));
  const auto z = training_levels(scores, ThresholdKind::robust_z, at::tensor({2.F, 1.F}), 20);
  CHECK(at::allclose(z, at::tensor({50 + 2 * 1.4826F * 25, 50 + 1.4826F * 25})));
  CHECK(at::isinf(training_levels(scores, ThresholdKind::quantile, at::tensor({0.9F}), 102)).all().item<bool>());
}

TEST_CASE("a verdict falls beyond the drop level and lasts until below the release level", "[decision]") {
  const auto score = at::tensor({3.F, 2.F, 2.F, 0.5F, kNaN, kNaN, 3.F});
  const auto before = at::tensor({0, 0, 1, 1, 1, 0, 0}, at::kByte).to(at::kBool);
  const auto enough = at::tensor({1, 1, 1, 1, 1, 1, 0}, at::kByte).to(at::kBool);
  const auto flagged = judge(score, enough, before, levels(2.5, 1));
  CHECK(at::equal(flagged.to(at::kByte), at::tensor({1, 0, 1, 0, 1, 0, 0}, at::kByte)));
}

TEST_CASE("weights: drop, down-weight, floor, cap", "[decision]") {
  SieveOptions o;
  const auto score = at::tensor({4.F, 1.F, 8.F, 6.F, 5.F});
  const auto flagged = at::tensor({1, 0, 1, 1, 1}, at::kByte).to(at::kBool);
  CHECK(at::equal(weigh(score, flagged, levels(2, 2), o, 5), at::tensor({0.F, 1.F, 0.F, 0.F, 0.F})));
  o.max_fraction = 0.5;  // two of each block of four; the short last block of one may drop its row too
  CHECK(at::equal(weigh(score, flagged, levels(2, 2), o, 4), at::tensor({1.F, 1.F, 0.F, 0.F, 0.F})));
  o.max_fraction = 1;
  o.action = Action::downweight;
  o.floor = 0.1;
  CHECK(at::allclose(weigh(score, flagged, levels(2, 2), o, 5), at::tensor({0.25F, 1.F, 0.1F, 1.F / 9, 0.16F})));
  CHECK(at::allclose(weigh(-score, flagged, levels(-9, -9), o, 5), at::tensor({0.1F, 1.F, 0.1F, 0.1F, 0.1F})));
}

TEST_CASE("permuting rows permutes weights", "[decision]") {
  SieveOptions o;
  o.max_fraction = 0.3;
  const auto score = at::randn({32}), flagged = score > 0, order = at::randperm(32);
  const auto weight = weigh(score, flagged, levels(0, 0), o, 32);
  CHECK(at::equal(weigh(score.index_select(0, order), flagged.index_select(0, order), levels(0, 0), o, 32),
                  weight.index_select(0, order)));
}

TEST_CASE("the number of probed rows depends on the shape alone", "[decision]") {
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto& priority : {at::randn({10}), at::zeros({10}), at::full({10}, -inf)}) {
    const auto rows = choose_rows(priority, 4, 2);
    CHECK(rows.size(0) == 6);
    CHECK(rows.max().item<int64_t>() < 10);
  }
  CHECK(at::equal(choose_rows(at::tensor({0.F, 9.F, 5.F, 1.F, 0.F, 0.F, 7.F, 0.F}), 4, 2),
                  at::tensor({1L, 2L, 6L, 4L}, at::kLong)));
}
