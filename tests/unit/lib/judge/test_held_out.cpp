#include "judge/held_out.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_held_out {

using memsieve::plan_held_out;

TEST_CASE("held-out visits: ranks share a step's rows, the same for any number of ranks", "[held_out]") {
  for (int64_t step : {0, 7, 1000}) {
    const auto alone = plan_held_out(step, 8, 5, 20, 0, 8);
    REQUIRE(alone.size() == 8);
    for (int64_t ranks : {2, 3, 4}) {
      const int64_t each = (8 + ranks - 1) / ranks;
      size_t at = 0;
      for (int64_t rank = 0; rank < ranks; ++rank) {
        const auto visits = plan_held_out(step, 8, 5, 20, rank, each);
        CHECK(static_cast<int64_t>(visits.size()) == each);  // what is left over fills up
        for (const auto& visit : visits) {
          CHECK(visit.place == static_cast<int64_t>(at));
          CHECK((visit.picture >= 0 && visit.picture < 5));
          CHECK((visit.timestep_fraction >= 0 && visit.timestep_fraction < 1));
          if (at < 8) CHECK(visit.id == alone[at].id);
          if (at < 8) CHECK(visit.timestep_fraction == alone[at].timestep_fraction);
          ++at;
        }
      }
    }
  }
}

TEST_CASE("held-out visits: each four in a row reach into the upper timesteps", "[held_out]") {
  // The probe budget chooses among four in a row, and some filters look at the upper timesteps alone.
  for (int64_t step = 0; step < 50; ++step) {
    for (const int64_t rows : {8, 16, 32}) {
      const auto visits = plan_held_out(step, rows, 64, 192, 0, rows);
      for (size_t first = 0; first < visits.size(); first += 4) {
        double high = 0;
        for (size_t i = first; i < first + 4; ++i) high = std::max(high, visits[i].timestep_fraction);
        CHECK(high > 0.6);
      }
    }
  }
}

TEST_CASE("held-out visits: each cycle shows every pseudo-row once, and timesteps are stratified", "[held_out]") {
  std::map<int64_t, int> seen;
  for (int64_t step = 0; step < 30; ++step) {
    std::vector<int> strata;
    for (const auto& visit : plan_held_out(step, 8, 6, 24, 0, 8)) {
      ++seen[visit.id];
      CHECK(visit.picture == visit.id % 6);
      CHECK((visit.timestep_fraction >= 0 && visit.timestep_fraction < 1));
      strata.push_back(static_cast<int>(std::floor(visit.timestep_fraction * 8)));
    }
    std::sort(strata.begin(), strata.end());
    CHECK(strata == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7});
  }
  REQUIRE(seen.size() == 24);
  for (const auto& [id, visits] : seen) CHECK(visits == 10);
}

}  // namespace of_test_held_out
