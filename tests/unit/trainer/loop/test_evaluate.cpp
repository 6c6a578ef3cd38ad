#include <ATen/ATen.h>
#include <trainer/loop/evaluate.h>

#include <catch2/catch.hpp>
#include <set>

namespace of_test_evaluate {

using namespace memsieve::trainer;

TEST_CASE("validation timesteps lie one in each part and differ between rows") {
  std::set<int64_t> seen;
  for (int64_t row = 0; row < 50; ++row) {
    for (int64_t draw = 0; draw < 4; ++draw) {
      const int64_t t = stratified_timestep(row, draw, 4, 1000);
      CHECK(t / 250 == draw);
      seen.insert(t);
    }
  }
  CHECK(seen.size() > 150);
}

}  // namespace of_test_evaluate
