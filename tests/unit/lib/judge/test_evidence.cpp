#include "judge/evidence.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <vector>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_evidence {

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

namespace {

/// [W, 1] means of which the share `repeated` lies far above the others, which are standard normal about `shift`.
at::Tensor means_of(double repeated, double shift) {
  const auto g = at::detail::createCPUGenerator(8);
  auto means = at::randn({4000, 1}, g) + shift;
  means.slice(0, 0, static_cast<int64_t>(4000 * repeated)) += 6;
  return means;
}

double drift_of(const at::Tensor& means, double flagged = 0) {
  return bulk_drift(means, at::full({}, flagged, at::kFloat)).item<double>();
}

/// Evidence of `channels` with `rows` pseudo-rows after slot 0, as z [visits, rows, C] show them.
Evidence held_out(const at::Tensor& z, const std::vector<float>& weights) {
  EvidenceOptions options;
  options.kind = EvidenceOptions::Kind::discounted;
  options.sums.spread = 1e-6;
  options.min_visits = 1;
  Evidence evidence(options, 1 + z.size(1), weights, at::kCPU);
  const auto slot = at::arange(z.size(1)) + 1;
  for (int64_t v = 0; v < z.size(0); ++v) evidence.fold(slot, z[v], at::ones({z.size(1)}, at::kBool));
  evidence.refresh_precision(1, 10);
  return evidence;
}

double scale_of(const at::Tensor& score) {
  return (score - score.median()).abs().median().item<double>() * 1.4826;
}

}  // namespace

TEST_CASE("drift is no repeated rows' doing, but that of the set as a whole", "[evidence]") {
  for (const double repeated : {0.0, 0.05, 0.3, 0.4}) CHECK(drift_of(means_of(repeated, 0)) < 0.15);
  CHECK(drift_of(means_of(0.5, 0)) < 0.6);  // twice the 60% quantile of the others
  for (const double repeated : {0.0, 0.05}) CHECK(drift_of(means_of(repeated, 3)) == Approx(3).margin(0.2));
  // Those that were found out are no part of the means.
  CHECK(drift_of(means_of(0, 3), 0.05) == Approx(3).margin(0.2));
  CHECK(drift_of(means_of(0, 0), 0.4) < 0.2);
  CHECK(drift_of(means_of(0, -3)) == 0);
  CHECK(drift_of(means_of(0, 3).slice(0, 0, 150)) == 0);  // too few to tell
  CHECK(drift_of(at::full({1000, 1}, kNaN)) == 0);
}

TEST_CASE("a channel weighs by its precision among held-out rows, and together they have unit width", "[evidence]") {
  const auto g = at::detail::createCPUGenerator(9);
  auto z = at::randn({6, 4000, 2}, g);
  z.select(2, 1) *= 3;  // nine times the variance
  const auto evidence = held_out(z, {1, 1});
  const auto slot = at::zeros({2}, at::kLong);
  const auto now = evidence.with_visit(evidence.recall(slot), at::tensor({1.F, 0.F, 0.F, 1.F}).reshape({2, 2}),
                                       at::ones({2}, at::kBool));
  CHECK(now.score[0].item<double>() / now.score[1].item<double>() == Approx(9).epsilon(0.15));
  CHECK(scale_of(evidence.of_slots_from(1)) == Approx(1).margin(0.06));
}

TEST_CASE("channels that say the same, or more than they should, widen the evidence; none narrows it", "[evidence]") {
  const auto g = at::detail::createCPUGenerator(10);
  const auto one = at::randn({6, 4000, 1}, g);
  const auto same = held_out(one.expand({6, 4000, 2}), {1, 1});
  CHECK(scale_of(same.of_slots_from(1)) == Approx(1).margin(0.06));
  const auto wide = held_out(2 * one, {1});
  CHECK(scale_of(wide.of_slots_from(1)) == Approx(1).margin(0.06));
  const auto narrow = held_out(0.5 * one, {1});
  CHECK(scale_of(narrow.of_slots_from(1)) == Approx(0.5).margin(0.04));
  // With one channel missing, the other alone has unit width.
  auto half = at::randn({6, 4000, 2}, g);
  half.slice(1, 2000).select(2, 1).fill_(kNaN);
  CHECK(scale_of(held_out(half, {1, 1}).of_slots_from(1).slice(0, 2000)) == Approx(1).margin(0.06));
}

TEST_CASE("what alike samples have shown counts where there are enough of them and it says more", "[evidence]") {
  EvidenceOptions options;
  options.kind = EvidenceOptions::Kind::discounted;
  options.min_visits = 1;
  Evidence evidence(options, 4, {1}, at::kCPU);
  const auto slot = at::arange(4);
  // Slot 3 was never measured.
  evidence.fold(slot.slice(0, 0, 3), at::tensor({1.F, 4.F, 1.F}).reshape({3, 1}), at::ones({3}, at::kBool));
  Neighbours near;
  near.sums = {at::full({4, 1}, 6.F), at::full({4, 1}, 3, at::kShort)};
  near.enough = at::tensor({1, 1, 0, 1}, at::kByte).to(at::kBool);
  const auto none = at::full({4, 1}, kNaN), nobody = at::zeros({4}, at::kBool);
  const auto alone = evidence.with_visit(evidence.recall(slot), none, nobody);
  const auto now = evidence.with_visit(evidence.recall(slot), none, nobody, near);
  const double w = 1 + 0.9 + 0.81, v = 1 + 0.81 + 0.6561, together = 6 / std::sqrt(v + 0.1 * w * w);
  CHECK(now.score[0].item<double>() == Approx(together));
  CHECK(now.score[1].item<double>() == Approx(std::max(together, 4 / std::sqrt(1 + 3.0))));
  CHECK(now.score[2].item<double>() == Approx(1 / std::sqrt(1 + 3.0)));
  CHECK(now.score[3].item<double>() == Approx(together));
  CHECK(std::isnan(alone.score[3].item<float>()));
  CHECK(at::equal(now.visits, at::tensor({3L, 3L, 1L, 3L}, at::kLong)));
  // This visit is one more of them.
  const auto seen = evidence.with_visit(evidence.recall(slot), at::full({4, 1}, 2.F), at::ones({4}, at::kBool), near);
  const double w4 = 1 + 0.9 * w, v4 = 1 + 0.81 * v;
  CHECK(seen.score[0].item<double>() == Approx((0.9 * 6 + 2) / std::sqrt(v4 + 0.1 * w4 * w4)));
}

}  // namespace of_test_evidence
