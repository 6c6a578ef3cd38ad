// The sampler: a pure function of seed and step that every number of ranks agrees on.
#include <memsieve/error.h>
#include <diffusion/data/sampler.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <numeric>
#include <set>

namespace of_test_sampler {

using namespace memsieve::diffusion;

TEST_CASE("N ranks see the same global batch as one") {
  const Sampler one(101, 1, 12, 1, 9);
  for (const auto& [world, rows, micro] :
       std::vector<std::tuple<int, int, int>>{{1, 6, 2}, {2, 6, 1}, {2, 3, 2}, {4, 3, 1}, {3, 1, 4}}) {
    const Sampler many(101, world, rows, micro, 9);
    for (int64_t step = 0; step < 30; ++step) {
      std::vector<int64_t> together;
      for (int64_t m = 0; m < micro; ++m)
        for (int64_t rank = 0; rank < world; ++rank) {
          REQUIRE(many.place(m, rank, 0) == static_cast<int64_t>(together.size()));
          for (const int64_t id : many.rows(step, m, rank)) together.push_back(id);
        }
      REQUIRE(together == one.global_batch(step));
      REQUIRE(many.epoch(step) == one.epoch(step));
    }
  }
}

TEST_CASE("epochs leave out no row and repeat none") {
  const Sampler sampler(29, 2, 2, 2, 3);
  std::vector<int64_t> walked;
  for (int64_t step = 0; step < 29; ++step)
    for (const int64_t id : sampler.global_batch(step)) walked.push_back(id);
  REQUIRE(walked.size() == 8 * 29);
  std::set<std::vector<int64_t>> orders;
  for (int epoch = 0; epoch < 8; ++epoch) {
    const std::vector<int64_t> order(walked.begin() + epoch * 29, walked.begin() + (epoch + 1) * 29);
    orders.insert(order);
    auto sorted = order;
    std::sort(sorted.begin(), sorted.end());
    std::vector<int64_t> all(29);
    std::iota(all.begin(), all.end(), 0);
    REQUIRE(sorted == all);
  }
  REQUIRE(orders.size() == 8);
}

TEST_CASE("steps may be asked for in any order, and a seed changes them") {
  const Sampler forward(50, 1, 8, 1, 1), backward(50, 1, 8, 1, 1), other(50, 1, 8, 1, 2);
  std::vector<std::vector<int64_t>> batches;
  for (int64_t step = 0; step < 40; ++step) batches.push_back(forward.global_batch(step));
  for (int64_t step = 39; step >= 0; --step) REQUIRE(backward.global_batch(step) == batches[step]);
  REQUIRE(other.global_batch(0) != batches[0]);
}

TEST_CASE("shuffles are fair: every row reaches every place equally often") {
  std::vector<int> counts(5 * 5, 0);
  for (int64_t epoch = 0; epoch < 5000; ++epoch) {
    const auto order = epoch_permutation(5, 17, epoch);
    for (int place = 0; place < 5; ++place) ++counts[place * 5 + order[place]];
  }
  for (const int count : counts) REQUIRE(std::abs(count - 1000) < 5 * 29);  // binomial sd is 28.3
}

TEST_CASE("impossible batches are refused") {
  REQUIRE_THROWS_WITH(Sampler(10, 2, 3, 2, 0),
                      "sampler: a global batch of 2 ranks x 3 rows x 2 micro-batches is larger than the data set of 10 "
                      "rows; lower train_batch_size or gradient_accumulation_steps");
  REQUIRE_NOTHROW(Sampler(12, 2, 3, 2, 0));
  REQUIRE_THROWS_AS(Sampler(10, 1, int64_t{1} << 62, 8, 0), memsieve::ConfigError);
  REQUIRE_THROWS_AS(Sampler(10, 1, 0, 1, 0), memsieve::ConfigError);
  REQUIRE_THROWS_AS(Sampler(10, 1, 1, -1, 0), memsieve::ConfigError);
  REQUIRE_THROWS_AS(Sampler(0, 1, 1, 1, 0), memsieve::ConfigError);
}

TEST_CASE("a set smaller than the batch comes round as often as it takes, if that is allowed") {
  // 3 rows in batches of 2 x 4: 9 epochs in 27 places
  const Sampler two(3, 2, 2, 2, 4, Repeats::allowed), one(3, 1, 8, 1, 4, Repeats::allowed);
  std::vector<int64_t> stream;
  for (int64_t step = 0; step < 4; ++step) {
    std::vector<int64_t> together;
    for (int64_t micro = 0; micro < 2; ++micro)
      for (int64_t rank = 0; rank < 2; ++rank)
        for (const int64_t id : two.rows(step, micro, rank)) together.push_back(id);
    REQUIRE(together == one.global_batch(step));
    stream.insert(stream.end(), together.begin(), together.end());
  }
  for (size_t first = 0; first + 3 <= stream.size(); first += 3)
    REQUIRE(std::set<int64_t>(stream.begin() + first, stream.begin() + first + 3) == std::set<int64_t>{0, 1, 2});
  REQUIRE_THROWS_AS(Sampler(3, 2, 2, 2, 4), memsieve::ConfigError);
  REQUIRE_THROWS_AS(Sampler(0, 2, 2, 2, 4, Repeats::allowed), memsieve::ConfigError);
}

TEST_CASE("what is passed over makes room for what follows in the stream") {
  const Sampler sampler(29, 2, 2, 2, 3);
  const auto stream = [&](int64_t from, int64_t to) {
    std::vector<int64_t> ids;
    for (int64_t at = from; at < to; ++at) ids.push_back(epoch_permutation(29, 3, at / 29)[at % 29]);
    return ids;
  };
  const auto every_third = [](int64_t id) { return id % 3 == 0; };
  int64_t at = 0, passed = 0;
  for (int step = 0; step < 40; ++step) {
    const Filled batch = sampler.fill(at, every_third);
    REQUIRE(batch.ids.size() == 8);
    std::vector<int64_t> kept, left;
    for (const int64_t id : stream(at, batch.end)) (every_third(id) ? left : kept).push_back(id);
    REQUIRE(batch.ids == kept);
    REQUIRE(batch.passed_over == left);
    at = batch.end;
    passed += static_cast<int64_t>(left.size());
  }
  REQUIRE(passed > 100);
  const Filled plain = sampler.fill(3 * 8, [](int64_t) { return false; });
  REQUIRE(plain.ids == sampler.global_batch(3));
  REQUIRE(plain.end == 4 * 8);
  REQUIRE(plain.passed_over.empty());
}

TEST_CASE("a batch ends, whatever is passed over") {
  const Sampler sampler(29, 1, 8, 1, 3);
  const Filled all = sampler.fill(5, [](int64_t) { return true; });
  REQUIRE(all.ids.size() == 8);
  REQUIRE(all.passed_over.size() == Sampler::kMostWalked * 8);
  REQUIRE(all.end == 5 + (Sampler::kMostWalked + 1) * 8);
  const Filled one = sampler.fill(0, [](int64_t id) { return id != 4; });
  REQUIRE(one.ids.size() == 8);
  REQUIRE(one.end == static_cast<int64_t>(one.ids.size() + one.passed_over.size()));
}

}  // namespace of_test_sampler
