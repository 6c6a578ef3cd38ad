#include "judge/likeness.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <support/thread_ranks.h>

#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_likeness {

using namespace memsieve;

namespace {

const float kNaN = std::numeric_limits<float>::quiet_NaN();

at::Tensor yes(int64_t rows) {
  return at::ones({rows}, at::kBool);
}

/// Features around a mean that is far from 0, as embeddings have it.
at::Tensor rows_of(int64_t rows, uint64_t seed) {
  return at::randn({rows, kLikenessWidth}, at::detail::createCPUGenerator(seed)) + 5;
}

/// One that has seen samples 0 to 499 and knows their mean.
Likeness known(const at::Tensor& features, int64_t channels = 1) {
  Likeness likeness({}, channels, at::kCPU);
  likeness.fold_seen(features, at::arange(features.size(0)), yes(features.size(0)));
  return likeness;
}

at::Tensor alike(const Likeness& likeness, const at::Tensor& features, const at::Tensor& sample) {
  return likeness.of(features, sample, sample).alike;
}

}  // namespace

TEST_CASE("rows with copies among the last ones are alike, all others are not, whatever the features' mean",
          "[likeness]") {
  const auto features = rows_of(500, 1);
  const auto likeness = known(features);
  const auto copies = features.slice(0, 0, 5), others = at::arange(5) + 1000;
  CHECK(at::equal(alike(likeness, copies, others), at::full({5}, 0.25F)));
  CHECK(at::equal(alike(likeness, copies + 0.2 * (rows_of(5, 2) - 5), others), at::full({5}, 0.25F)));
  CHECK(alike(likeness, rows_of(500, 3), at::arange(500) + 1000).max().item<double>() == 0);
  // Of larger values, but in another direction from the mean.
  CHECK(alike(likeness, 5 - (copies - 5), others).max().item<double>() == 0);
}

TEST_CASE("a row is not its own copy, and four copies are many", "[likeness]") {
  const auto features = rows_of(500, 1);
  auto likeness = known(features);
  const auto own = features.slice(0, 0, 5);
  CHECK(alike(likeness, own, at::arange(5)).max().item<double>() == 0);
  for (int more = 1; more <= 6; ++more) {
    likeness.fold_seen(own, at::arange(5) + 700 * more, yes(5));
    CHECK(at::allclose(alike(likeness, own, at::arange(5)), at::full({5}, std::min(1.0, more / 4.0))));
  }
  likeness.fold_seen(rows_of(600, 8), at::arange(600) + 10000, yes(600));  // long ago
  CHECK(alike(likeness, own, at::arange(5)).max().item<double>() == 0);
}

TEST_CASE("what is remembered grows with the data set, up to a bound", "[likeness]") {
  const auto remembered = [](int64_t samples) {
    const auto options = Likeness::Options::of(0.85, 0.9, samples);
    return std::pair{options.seen, options.measured};
  };
  CHECK(remembered(0) == std::pair<int64_t, int64_t>{512, 1024});
  CHECK(remembered(4096) == std::pair<int64_t, int64_t>{512, 1024});
  CHECK(remembered(40000) == std::pair<int64_t, int64_t>{5000, 2500});
  CHECK(remembered(int64_t{1} << 40) == std::pair<int64_t, int64_t>{16384, 8192});
}

TEST_CASE("what rows that are alike have shown is what a loop over them adds up", "[likeness]") {
  constexpr int64_t kKinds = 6, kSamples = 30, kSlots = 12, kChannels = 2;
  const auto g = at::detail::createCPUGenerator(5);
  const auto kinds = rows_of(kKinds, 6);
  // Some of a kind share a slot, and some slots have samples of several kinds.
  const auto kind_of = at::arange(kSamples) % kKinds, slot_of = at::arange(kSamples) % kSlots + 100;
  auto likeness = known(rows_of(500, 1), kChannels);
  struct Visit {
    int64_t sample = 0;
    double z[kChannels] = {};
  };
  std::vector<Visit> visits;
  for (int step = 0; step < 20; ++step) {
    const auto sample = at::randint(kSamples, {9}, g, at::kLong), counted = at::rand({9}, g) < 0.7;
    const auto z = at::randn({9, kChannels}, g).masked_fill(at::rand({9, kChannels}, g) < 0.4, kNaN);
    likeness.fold_measured(kinds.index_select(0, kind_of.index_select(0, sample)), sample,
                           slot_of.index_select(0, sample), z, counted);
    for (int64_t i = 0; i < 9; ++i) {
      const Visit visit{sample[i].item<int64_t>(), {z[i][0].item<double>(), z[i][1].item<double>()}};
      if (counted[i].item<bool>() && !(std::isnan(visit.z[0]) && std::isnan(visit.z[1]))) visits.push_back(visit);
    }
  }
  const auto near = likeness.of(kinds.index_select(0, kind_of), at::arange(kSamples), slot_of);
  for (int64_t s = 0; s < kSamples; ++s) {
    double sum[kChannels] = {};
    int64_t count[kChannels] = {};
    std::set<int64_t> others;
    for (const auto& visit : visits) {
      if (visit.sample % kKinds != s % kKinds && visit.sample % kSlots != s % kSlots) continue;
      if (visit.sample != s) others.insert(visit.sample);
      for (int c = 0; c < kChannels; ++c) {
        if (std::isnan(visit.z[c])) continue;
        sum[c] = 0.9 * sum[c] + visit.z[c];
        ++count[c];
      }
    }
    INFO("sample " << s);
    for (int c = 0; c < kChannels; ++c) {
      CHECK(near.sums.sum[s][c].item<double>() == Approx(sum[c]).margin(1e-5));
      CHECK(near.sums.visits[s][c].item<int64_t>() == count[c]);
    }
    CHECK(near.enough[s].item<bool>() == (others.size() >= 2));
  }
}

TEST_CASE("one other sample, however often measured, is not enough", "[likeness]") {
  const auto features = rows_of(500, 1), one = features.slice(0, 0, 1).repeat({6, 1});
  auto likeness = known(features);
  const auto enough = [&] {
    return likeness.of(one.slice(0, 0, 1), at::zeros({1}, at::kLong), at::zeros({1}, at::kLong)).enough.item<bool>();
  };
  const auto fold = [&](int64_t sample) {
    const auto samples = at::full({6}, sample, at::kLong);
    likeness.fold_measured(one, samples, samples, at::ones({6, 1}), yes(6));
  };
  fold(0);
  fold(7);
  CHECK_FALSE(enough());
  fold(8);
  CHECK(enough());
}

TEST_CASE("a row without features, or not counted, leaves no trace, and its own slot is still known", "[likeness]") {
  const auto features = rows_of(500, 1);
  auto likeness = known(features);
  auto more = rows_of(4, 9);
  more[0] = kNaN;
  likeness.fold_seen(more, at::arange(4), at::zeros({4}, at::kBool));
  likeness.fold_seen(more.slice(0, 0, 1), at::arange(1), yes(1));
  const auto asked = rows_of(50, 10);
  CHECK(alike(likeness, more, at::arange(4) + 900).max().item<double>() == 0);
  CHECK(alike(likeness, asked, at::arange(50)).max().item<double>() == 0);
  const auto slot = at::full({4}, 3, at::kLong);
  likeness.fold_measured(more, at::arange(4), slot, at::ones({4, 1}), yes(4));
  const auto near = likeness.of(more.slice(0, 0, 1), at::full({1}, 50, at::kLong), slot.slice(0, 0, 1));
  CHECK(near.sums.visits.item<int64_t>() == 4);
  CHECK(near.enough.item<bool>());
}

TEST_CASE("likeness goes through its state", "[likeness]") {
  const auto features = rows_of(500, 1);
  auto likeness = known(features);
  likeness.fold_measured(features, at::arange(500), at::arange(500), features.slice(1, 0, 1), yes(500));
  Likeness resumed({}, 1, at::kCPU);
  const State from = likeness.state(), to = resumed.state();
  REQUIRE(from.size() == to.size());
  for (size_t i = 0; i < from.size(); ++i) {
    REQUIRE(from[i].first == to[i].first);
    to[i].second->copy_(*from[i].second);
  }
  const auto asked = features + 0.3, slot = at::arange(500) + 2;
  const auto a = likeness.of(asked, slot, slot), b = resumed.of(asked, slot, slot);
  CHECK(at::equal(a.alike, b.alike));
  CHECK(at::equal(a.sums.sum, b.sums.sum));
  CHECK(at::equal(a.enough, b.enough));
  CHECK(a.alike.max().item<double>() > 0);
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

}  // namespace of_test_likeness
