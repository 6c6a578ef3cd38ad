// The weight of the divergence in the inversion of noise.
#include <audit/measure/inversion.h>

#include <catch2/catch.hpp>

namespace of_test_inversion {

using memsieve::audit::DivergenceWeight;

TEST_CASE("the divergence weighs more and more, and half as much where the error no longer falls") {
  DivergenceWeight weight(50);
  CHECK(weight.value() == 1);
  const auto updates = [&](int count, double error) {
    for (int i = 0; i < count; ++i) weight.update(error);
    return weight.value();
  };
  CHECK(updates(49, 2) == Approx(1.049));
  CHECK(updates(1, 2) == Approx(1.05));  // there is nothing yet to compare with
  CHECK(updates(50, 1) == Approx(1.1));  // the mean of 100 fell from 2 to 1.5
  CHECK(updates(49, 2) == Approx(1.149));
  CHECK(updates(1, 2) == Approx(1.149 / 2));  // it is 1.5 still
  CHECK(updates(50, 0) == Approx(1.149 / 2 + 0.05));
}

}  // namespace of_test_inversion
