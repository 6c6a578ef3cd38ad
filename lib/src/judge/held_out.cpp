#include "judge/held_out.h"

#include <algorithm>
#include <numeric>

namespace memsieve {

namespace {

/// SplitMix64 (Steele, Lea, Flood 2014): one well-mixed word for each input.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// A permutation of [0, n) for each cycle: i -> a*i + b mod n with a coprime to n.
int64_t shuffled(int64_t i, int64_t n, uint64_t cycle) {
  const auto size = static_cast<uint64_t>(n);
  uint64_t a = mix(2 * cycle) % size;
  while (std::gcd(a, size) != 1) a = (a + 1) % size;
  const auto product = static_cast<unsigned __int128>(a) * static_cast<uint64_t>(i) + mix(2 * cycle + 1) % size;
  return static_cast<int64_t>(product % size);
}

}  // namespace

std::vector<HeldOutVisit> plan_held_out(int64_t step, int64_t rows, int64_t pictures, int64_t pseudo_rows, int64_t rank,
                                        int64_t rows_per_rank) {
  std::vector<HeldOutVisit> visits;
  const auto turn =
      static_cast<int64_t>(mix(static_cast<uint64_t>(step)) % static_cast<uint64_t>(std::max<int64_t>(1, rows)));
  // Four neighbours, among which the probe budget is spent, cover all of time.
  int64_t stride = std::max<int64_t>(1, rows / 4);
  while (std::gcd(stride, rows) != 1) ++stride;
  for (int64_t place = rank * rows_per_rank; place < std::min(rows, (rank + 1) * rows_per_rank); ++place) {
    const int64_t number = step * rows + place;
    HeldOutVisit visit;
    visit.place = place;
    visit.id = shuffled(number % pseudo_rows, pseudo_rows, static_cast<uint64_t>(number / pseudo_rows));
    visit.picture = visit.id % pictures;
    const double jitter = static_cast<double>(mix(static_cast<uint64_t>(number) ^ 0x5eedULL) >> 11) * 0x1.0p-53;
    visit.timestep_fraction =
        (static_cast<double>((place * stride + turn) % rows) + jitter) / static_cast<double>(rows);
    visits.push_back(visit);
  }
  return visits;
}

}  // namespace memsieve
