#include "judge/discounted.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_discounted {

using namespace memsieve;

namespace {
const float kNaN = std::numeric_limits<float>::quiet_NaN();

at::Tensor yes(int64_t rows) {
  return at::ones({rows}, at::kBool);
}
}  // namespace

TEST_CASE("discounted sums are those of a loop over the visits in their global order", "[discounted]") {
  const double discount = GENERATE(0.9, 0.5, 1.0);
  const int64_t rows = GENERATE(40, 1300);  // more than are compared at a time
  constexpr int64_t kSlots = 25, kChannels = 2;
  const auto g = at::detail::createCPUGenerator(rows);
  DiscountedSums sums({.discount = discount}, kSlots, kChannels, at::kCPU);
  std::vector<std::vector<double>> expected(kSlots, std::vector<double>(kChannels));
  std::vector<std::vector<int64_t>> visits(kSlots, std::vector<int64_t>(kChannels));
  for (int step = 0; step < 6; ++step) {
    const auto slot = at::randint(kSlots, {rows}, g, at::kLong);
    const auto valid = at::rand({rows}, g) < 0.8;
    const auto z = at::randn({rows, kChannels}, g).masked_fill(at::rand({rows, kChannels}, g) < 0.3, kNaN);
    sums.fold(slot, z, valid);
    for (int64_t r = 0; r < rows; ++r) {
      if (!valid[r].item<bool>()) continue;
      const auto s = static_cast<size_t>(slot[r].item<int64_t>());
      for (int64_t c = 0; c < kChannels; ++c) {
        const double value = z[r][c].item<double>();
        if (std::isnan(value)) continue;
        expected[s][static_cast<size_t>(c)] = discount * expected[s][static_cast<size_t>(c)] + value;
        ++visits[s][static_cast<size_t>(c)];
      }
    }
  }
  const auto past = sums.since(0);
  for (int64_t s = 0; s < kSlots; ++s) {
    for (int64_t c = 0; c < kChannels; ++c) {
      const auto i = static_cast<size_t>(s), j = static_cast<size_t>(c);
      CHECK(past.sum[s][c].item<double>() ==
            Approx(expected[i][j]).margin(2e-5 * std::sqrt(static_cast<double>(rows))));
      CHECK(past.visits[s][c].item<int64_t>() == visits[i][j]);
    }
  }
}

TEST_CASE("rows of others between them, however many, do not change a slot's sum in the last bit", "[discounted]") {
  const auto g = at::detail::createCPUGenerator(3);
  const auto z = at::randn({9, 1}, g);
  const auto sum_with = [&](int64_t between) {
    DiscountedSums sums({}, 2, 1, at::kCPU);
    const auto slot = at::ones({9 * (between + 1)}, at::kLong), values = at::full({9 * (between + 1), 1}, 7.F);
    const auto place = at::arange(9) * (between + 1);
    slot.index_fill_(0, place, 0);
    values.index_copy_(0, place, z);
    sums.fold(slot, values, yes(slot.size(0)));
    return sums.since(0).sum[0].item<float>();
  };
  for (const int64_t between : {1, 3, 7, 90}) CHECK(sum_with(between) == sum_with(0));
}

TEST_CASE("a visit that is judged counts as it does once it is folded", "[discounted]") {
  const auto g = at::detail::createCPUGenerator(4);
  DiscountedSums sums({.discount = 0.8}, 6, 2, at::kCPU);
  const auto slot = at::arange(6);
  for (int step = 0; step < 5; ++step) {
    const auto z = at::randn({6, 2}, g).masked_fill(at::rand({6, 2}, g) < 0.3, kNaN);
    const auto now = sums.with_visit(sums.recall(slot), z);
    sums.fold(slot, z, yes(6));
    CHECK(at::allclose(now.sum, sums.since(0).sum));
    CHECK(at::equal(now.visits, sums.since(0).visits));
  }
}

TEST_CASE("T has unit variance for any number of visits where samples differ as `spread` says", "[discounted]") {
  const auto [discount, spread] = GENERATE(table<double, double>({{0.9, 3}, {0.9, 0.2}, {1, 3}, {0.7, 1}}));
  constexpr int64_t kSamples = 20000;
  const auto g = at::detail::createCPUGenerator(5);
  DiscountedSums sums({.discount = discount}, kSamples, 1, at::kCPU);
  const auto lasting = at::randn({kSamples, 1}, g) * std::sqrt(spread) + 0.7;
  auto past = sums.since(0);
  for (int visit = 1; visit <= 40; ++visit) {
    past = sums.with_visit(past, lasting + at::randn({kSamples, 1}, g));
    if (visit != 1 && visit != 2 && visit != 8 && visit != 40) continue;
    const auto t = sums.standardised(past, at::full({1}, 0.7), spread);
    INFO(visit << " visits");
    CHECK(t.mean().item<double>() == Approx(0).margin(0.03));
    CHECK(t.var().item<double>() == Approx(1).margin(0.05));
  }
}

TEST_CASE("no visit is no evidence, and the more samples differ, the less a visit says", "[discounted]") {
  DiscountedSums sums({}, 2, 1, at::kCPU);
  const auto t = [&](double spread) {
    return sums.standardised(sums.recall(at::zeros({1}, at::kLong)), at::zeros({1}), spread);
  };
  CHECK(at::isnan(t(3)).all().item<bool>());
  sums.fold(at::zeros({3}, at::kLong), at::ones({3, 1}), yes(3));
  CHECK(t(0.2).item<double>() > t(0.5).item<double>());
  CHECK(t(0.5).item<double>() > t(3).item<double>());
}

TEST_CASE("two channels take at most 16 bytes a sample", "[discounted]") {
  constexpr int64_t kSlots = 1000;
  DiscountedSums sums({}, kSlots, 2, at::kCPU);
  int64_t bytes = 0;
  for (const auto& [name, tensor] : sums.state()) bytes += static_cast<int64_t>(tensor->nbytes());
  CHECK(bytes <= 16 * (kSlots + 1));
}

TEST_CASE("with discount 1 a sample's mean stays what it is when its count can grow no more", "[discounted]") {
  DiscountedSums sums({.discount = 1}, 1, 1, at::kCPU);
  const int64_t rows = 1000;
  for (int step = 0; step < 40; ++step) sums.fold(at::zeros({rows}, at::kLong), at::full({rows, 1}, 0.5F), yes(rows));
  CHECK(sums.since(0).visits.item<int64_t>() == 30000);
  CHECK(sums.mean(sums.since(0)).item<double>() == Approx(0.5).epsilon(0.01));
}

}  // namespace of_test_discounted
