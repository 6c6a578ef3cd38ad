#include "judge/probe.h"

#include <ATen/ATen.h>

#include <limits>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

using namespace memsieve;

TEST_CASE("the number of probed rows depends on the shape alone", "[probe]") {
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto& priority : {at::randn({10}), at::zeros({10}), at::full({10}, -inf)}) {
    const auto rows = choose_rows(priority, 4, 2);
    CHECK(rows.size(0) == 6);
    CHECK(rows.max().item<int64_t>() < 10);
  }
  CHECK(at::equal(choose_rows(at::tensor({0.F, 9.F, 5.F, 1.F, 0.F, 0.F, 7.F, 0.F}), 4, 2),
                  at::tensor({1L, 2L, 6L, 4L}, at::kLong)));
}
