#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <rapidcheck.h>

#include <cmath>
#include <deque>
#include <map>

#include <support/operators.h>
#include "judge/window.h"

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_window {

namespace {

void property(const std::string& what, const std::function<void()>& check) {
  INFO(what);
  CHECK(rc::check(what, check));
}

}  // namespace

TEST_CASE("rank_within_key equals counting by hand", "[window]") {
  property("ranks", [] {
    const auto keys = *rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, 5));
    const auto ranks = memsieve::rank_within_key(at::tensor(keys, at::kLong));
    std::map<int64_t, int64_t> seen, total;
    for (int64_t key : keys) ++total[key];
    for (size_t i = 0; i < keys.size(); ++i) {
      RC_ASSERT(ranks.rank[static_cast<int64_t>(i)].item<int64_t>() == seen[keys[i]]++);
      RC_ASSERT(ranks.count[static_cast<int64_t>(i)].item<int64_t>() == total[keys[i]]);
    }
  });
}

TEST_CASE("rank_within_key: many keys, which it sorts, rank as few do", "[window]") {
  at::manual_seed(3);
  const auto keys = at::randint(50, {2000}, at::kLong);
  const auto ranks = memsieve::rank_within_key(keys);
  const auto same = keys.unsqueeze(1) == keys.unsqueeze(0);
  CHECK(at::equal(ranks.rank, same.tril(-1).sum(1)));
  CHECK(at::equal(ranks.count, same.sum(1)));
}

TEST_CASE("rings hold the last items of each key, in any split of the stream", "[window]") {
  property("rings", [] {
    const int64_t rows = 3, length = 4;
    memsieve::Rings rings(rows, length, 1, at::kCPU);
    std::vector<std::deque<float>> model(rows);
    float next = 0;
    const int batches = *rc::gen::inRange(1, 5);
    for (int b = 0; b < batches; ++b) {
      const auto keys =
          *rc::gen::nonEmpty(rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, rows)));
      std::vector<float> items;
      std::vector<uint8_t> valid;
      for (int64_t key : keys) {
        items.push_back(next);
        valid.push_back(static_cast<int>(next) % 5 != 0);
        if (valid.back()) {
          model[key].push_back(next);
          if (model[key].size() > static_cast<size_t>(length)) model[key].pop_front();
        }
        ++next;
      }
      rings.fold(at::tensor(keys, at::kLong), at::tensor(items).reshape({-1, 1}),
                 at::tensor(valid, at::kByte).to(at::kBool));
    }
    for (int64_t row = 0; row < rows; ++row) {
      std::multiset<float> have, want(model[row].begin(), model[row].end());
      for (int64_t i = 0; i < length; ++i) {
        const auto value = rings.values()[row][i][0].item<float>();
        if (!std::isnan(value)) have.insert(value);
      }
      RC_ASSERT(have == want);
    }
  });
}

TEST_CASE("robust location and scale ignore what was never written", "[window]") {
  const float nan = std::nanf("");
  const auto stats = memsieve::robust(at::tensor({1.F, 2.F, 3.F, 100.F, 4.F, nan, nan}).reshape({1, -1, 1}));
  CHECK(stats.median.item<float>() == 3.F);
  CHECK(stats.scale.item<float>() == Approx(1.4826));
  CHECK(stats.count.item<int64_t>() == 5);
}

TEST_CASE("torch.use_deterministic_algorithms changes no number, and nothing is called that it refuses", "[window]") {
  const auto g = at::detail::createCPUGenerator(3);
  for (const int64_t length : {1, 2, 7, 64, 101}) {
    auto values = at::randn({9, length, 1}, g, at::kFloat).mul(4).round().div(4);  // with ties
    values.masked_fill_(at::rand({9, length, 1}, g, at::kFloat) < 0.3, std::nanf(""));
    values[0].fill_(std::nanf(""));
    const auto plain = memsieve::robust(values);
    memsieve::Robust other;
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    const auto used = toy::operators_of([&] { other = memsieve::robust(values); });
    at::globalContext().setDeterministicAlgorithms(false, false);
    CHECK(used.count("aten::sort") == 1);
    CHECK(used.count("aten::nanmedian") == 0);  // refused on a GPU
    for (const auto& [a, b] : {std::pair(plain.median, other.median), {plain.scale, other.scale}}) {
      CHECK(a.sizes() == b.sizes());
      CHECK(at::allclose(a, b, 0, 0, /*equal_nan=*/true));
    }
    CHECK(at::equal(plain.count, other.count));
  }
}

}  // namespace of_test_window
