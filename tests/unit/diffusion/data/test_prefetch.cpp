// The prefetcher: the same results in the same order, errors where they belong, bounded, and it stops.
#include <diffusion/data/prefetch.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <vector>

namespace of_test_prefetch {

using Catch::Contains;
using memsieve::diffusion::Prefetcher;

namespace {

/// Waits until `condition` holds, at most ten seconds.
template <class Condition>
bool eventually(const Condition& condition) {
  for (int i = 0; i < 10000 && !condition(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return condition();
}

/// Counts how many of its kind are alive.
class Counted {
 public:
  Counted() = default;
  explicit Counted(std::atomic<int>& alive, std::atomic<int>& most) : alive_(&alive, [](auto* n) { --*n; }) {
    const int now = ++alive;
    if (now > most) most = now;
  }

 private:
  std::shared_ptr<std::atomic<int>> alive_;
};

}  // namespace

TEST_CASE("prefetched results come in order, for any number ahead") {
  for (const int64_t ahead : {0, 1, 3, 100}) {
    Prefetcher<int64_t> source([](int64_t i) { return i * i; }, 5, 40, ahead);
    for (int64_t i = 5; i < 40; ++i) REQUIRE(source.take(i) == i * i);
    REQUIRE_THROWS_WITH(source.take(40), Contains("asked for 40"));
  }
}

TEST_CASE("prefetching runs on a thread of its own, and ahead of the consumer") {
  std::atomic<int> calls{0};
  std::atomic<bool> elsewhere{true};
  const auto here = std::this_thread::get_id();
  const auto make = [&](int64_t i) {
    elsewhere = elsewhere && std::this_thread::get_id() != here;
    ++calls;
    return i;
  };
  Prefetcher<int64_t> source(make, 0, 100, 4);
  REQUIRE(eventually([&] { return calls == 4; }));
  source.take(0);
  REQUIRE(eventually([&] { return calls == 5; }));
  REQUIRE(elsewhere);
  calls = 0;
  Prefetcher<int64_t> none(make, 0, 100, 0);
  none.take(0);
  REQUIRE((calls == 1 && !elsewhere));
}

TEST_CASE("no more results are alive than were asked for") {
  std::atomic<int> alive{0}, most{0};
  {
    Prefetcher<Counted> source([&](int64_t) { return Counted(alive, most); }, 0, 1000, 3);
    for (int64_t i = 0; i < 200; ++i) source.take(i);
    REQUIRE(eventually([&] { return alive == 3; }));
  }
  REQUIRE(alive == 0);
  REQUIRE(most <= 4);  // three that wait and the one that the consumer holds
}

TEST_CASE("an error is thrown by the index it belongs to, and the next ones still come") {
  for (const int64_t ahead : {0, 1, 8}) {
    const auto make = [](int64_t i) {
      if (i == 3) throw std::runtime_error("row of step 3");
      return i;
    };
    Prefetcher<int64_t> source(make, 0, 10, ahead);
    for (int64_t i = 0; i < 3; ++i) REQUIRE(source.take(i) == i);
    REQUIRE_THROWS_WITH(source.take(3), "row of step 3");
    REQUIRE(source.take(4) == 4);
    REQUIRE_THROWS_AS(source.take(4), std::logic_error);
  }
}

TEST_CASE("it stops at once, whatever is left to do") {
  std::atomic<int> calls{0};
  {
    Prefetcher<int64_t> source([&](int64_t i) { return ++calls, i; }, 0, int64_t{1} << 40, 2);
    REQUIRE(eventually([&] { return calls >= 1; }));
  }
  REQUIRE(calls <= 3);
  Prefetcher<int64_t> nothing([](int64_t i) { return i; }, 7, 7, 2);
  REQUIRE_THROWS_AS(nothing.take(7), std::logic_error);
}

TEST_CASE("nothing is made beyond the end, until it is moved") {
  for (const int64_t ahead : {0, 3}) {
    std::atomic<int64_t> known{2}, early{0};
    Prefetcher<int64_t> source(
        [&](int64_t i) {
          if (i >= known) ++early;
          return 10 * i;
        },
        0, 2, ahead);
    for (int64_t i = 0; i < 50; ++i) {
      if (i >= 1) {
        known = i + 2;
        source.extend(i + 2);
      }
      REQUIRE(source.take(i) == 10 * i);
    }
    source.extend(3);  // never fewer than before
    REQUIRE(source.take(50) == 500);
    REQUIRE_THROWS_AS(source.take(51), std::logic_error);
    REQUIRE(early == 0);
  }
}

}  // namespace of_test_prefetch
