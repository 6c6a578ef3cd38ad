#include "judge/action.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_action {

using namespace memsieve;

namespace {
Levels levels(double drop, double release) {
  return {at::full({}, drop), at::full({}, release)};
}
}  // namespace

TEST_CASE("weights: drop, down-weight, floor, cap", "[action]") {
  ActionOptions o;
  const auto score = at::tensor({4.F, 1.F, 8.F, 6.F, 5.F});
  const auto flagged = at::tensor({1, 0, 1, 1, 1}, at::kByte).to(at::kBool);
  CHECK(at::equal(weigh(score, flagged, levels(2, 2), o, 5), at::tensor({0.F, 1.F, 0.F, 0.F, 0.F})));
  o.max_fraction = 0.5;  // two of each block of four; the short last block of one may drop its row too
  CHECK(at::equal(weigh(score, flagged, levels(2, 2), o, 4), at::tensor({1.F, 1.F, 0.F, 0.F, 0.F})));
  o.max_fraction = 1;
  o.kind = ActionOptions::Kind::downweight;
  o.floor = 0.1;
  CHECK(at::allclose(weigh(score, flagged, levels(2, 2), o, 5), at::tensor({0.25F, 1.F, 0.1F, 1.F / 9, 0.16F})));
  CHECK(at::allclose(weigh(-score, flagged, levels(-9, -9), o, 5), at::tensor({0.1F, 1.F, 0.1F, 0.1F, 0.1F})));
}

TEST_CASE("permuting rows permutes weights", "[action]") {
  ActionOptions o;
  o.max_fraction = 0.3;
  const auto score = at::randn({32}), flagged = score > 0, order = at::randperm(32);
  const auto weight = weigh(score, flagged, levels(0, 0), o, 32);
  CHECK(at::equal(weigh(score.index_select(0, order), flagged.index_select(0, order), levels(0, 0), o, 32),
                  weight.index_select(0, order)));
}

}  // namespace of_test_action
