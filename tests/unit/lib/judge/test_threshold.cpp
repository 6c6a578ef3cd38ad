#include "judge/threshold.h"

#include <ATen/ATen.h>

#include <cmath>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_threshold {

using namespace memsieve;

namespace {
const float kNaN = std::nanf("");
Levels levels(double drop, double release) {
  return {at::full({}, drop), at::full({}, release)};
}
}  // namespace

namespace {

/// The level that a share `rate` of the scores exceeds.
at::Tensor held_out_level(double rate, const at::Tensor& scores, bool conformal) {
  return held_out_levels(scores, at::tensor({1 - rate}, at::kDouble), conformal, 20);
}

}  // namespace

TEST_CASE("held-out levels keep their promised false-drop rate", "[threshold]") {
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

TEST_CASE("too few held-out rows give no level rather than a wrong one", "[threshold]") {
  CHECK(std::isinf(held_out_level(0.1, at::randn({19}), false).item<float>()));
  CHECK(std::isinf(held_out_level(0.01, at::randn({50}), true).item<float>()));  // needs at least 99
  CHECK(std::isinf(held_out_level(0.01, at::full({50}, kNaN), false).item<float>()));
}

TEST_CASE("training levels: quantile and robust z", "[threshold]") {
  const auto scores = at::cat({at::arange(101).to(at::kFloat), at::full({50}, kNaN)});
  const auto quantiles = training_levels(scores, ThresholdOptions::Kind::quantile, at::tensor({0.9F, 0.5F}), 20);
  CHECK(at::allclose(quantiles, at::tensor({90.F, 50.F})));
  const auto z = training_levels(scores, ThresholdOptions::Kind::robust_z, at::tensor({2.F, 1.F}), 20);
  CHECK(at::allclose(z, at::tensor({50 + 2 * 1.4826F * 25, 50 + 1.4826F * 25})));
  CHECK(
      at::isinf(training_levels(scores, ThresholdOptions::Kind::quantile, at::tensor({0.9F}), 102)).all().item<bool>());
}

TEST_CASE("a verdict falls beyond the drop level and lasts until below the release level", "[threshold]") {
  const auto score = at::tensor({3.F, 2.F, 2.F, 0.5F, kNaN, kNaN, 3.F});
  const auto before = at::tensor({0, 0, 1, 1, 1, 0, 0}, at::kByte).to(at::kBool);
  const auto enough = at::tensor({1, 1, 1, 1, 1, 1, 0}, at::kByte).to(at::kBool);
  const auto flagged = verdict(score, enough, before, levels(2.5, 1));
  CHECK(at::equal(flagged.to(at::kByte), at::tensor({1, 0, 1, 0, 1, 0, 0}, at::kByte)));
}

TEST_CASE("the level of a rate is Student's quantile", "[threshold]") {
  // Tables: 1 - rate, degrees of freedom, quantile.
  const auto [rate, freedom, quantile] = GENERATE(table<double, int64_t, double>({{0.01, 63, 2.3870},
                                                                                  {0.01, 30, 2.4573},
                                                                                  {0.01, 15, 2.6025},
                                                                                  {0.01, 9, 2.8214},
                                                                                  {0.05, 9, 1.8331},
                                                                                  {0.005, 20, 2.8453},
                                                                                  {0.001, 60, 3.2317},
                                                                                  {0.1, 5, 1.4759}}));
  const auto n = static_cast<double>(freedom + 1);
  CHECK(rate_level(rate, freedom + 1) / std::sqrt(1 + 1 / n) == Approx(quantile).epsilon(0.002));
  CHECK(rate_level(0.01, 0) == Approx(2.3263).epsilon(1e-4));
}

TEST_CASE("the share of flagged slots is of those that some sample has", "[threshold]") {
  Threshold threshold({.kind = ThresholdOptions::Kind::fixed}, 12, 1, 0, at::kCPU);
  const auto slot = at::tensor({1, 7, 9}, at::kLong);
  threshold.fold_verdicts(slot, at::tensor({1, 0, 1}).to(at::kBool), at::ones({3}, at::kBool));
  CHECK(threshold.flagged_share(4).item<float>() == Approx(0.5));
  CHECK(threshold.flagged_share(12).item<float>() == at::tensor({2.0F / 12}).item<float>());
}

}  // namespace of_test_threshold
