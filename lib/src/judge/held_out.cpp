#include "judge/held_out.h"

#include <memsieve/detail/hash.h>

#include <algorithm>
#include <numeric>

#include "config/read.h"

namespace memsieve {

Schema HeldOutOptions::schema() {
  const HeldOutOptions d;
  Schema s;
  s.integer("rows", d.rows, 0, 1000000,
            "held-out rows observed in each optimiser step, over all ranks; a multiple of 4 times the ranks makes "
            "decisions independent of their number")
      .integer("every", d.every, 1, 1000000,
               "optimiser steps from one observation to the next; larger = cheaper, but the threshold follows the "
               "model more slowly");
  return s;
}

HeldOutOptions HeldOutOptions::read(const Settings& sieve) {
  return {sieve.integer("held_out.rows"), sieve.integer("held_out.every")};
}

void HeldOutOptions::check(const Settings& sieve, const Setup& setup, const std::string& wanted_by) const {
  if (!wanted_by.empty() && rows == 0)
    refuse(sieve, "held_out.rows", "is 0, but " + wanted_by + " is held_out; set it to 8 or so");
  if (rows > 0 && setup.held_out_size == 0)
    refuse(sieve, "held_out.rows", "asks for held-out rows, but the loop has no held-out pictures");
}

namespace {

using detail::split_mix64;

/// A permutation of [0, n) for each cycle: i -> a*i + b mod n with a coprime to n.
int64_t shuffled(int64_t i, int64_t n, uint64_t cycle) {
  const auto size = static_cast<uint64_t>(n);
  uint64_t a = split_mix64(2 * cycle) % size;
  while (std::gcd(a, size) != 1) a = (a + 1) % size;
  const auto product = static_cast<unsigned __int128>(a) * static_cast<uint64_t>(i) + split_mix64(2 * cycle + 1) % size;
  return static_cast<int64_t>(product % size);
}

}  // namespace

double stratified_time(int64_t turn, int64_t place, int64_t rows) {
  const auto first = static_cast<int64_t>(split_mix64(static_cast<uint64_t>(turn)) % static_cast<uint64_t>(rows));
  // Four neighbours, among which the probe budget is spent, cover all of time.
  int64_t stride = std::max<int64_t>(1, rows / 4);
  while (std::gcd(stride, rows) != 1) ++stride;
  const auto number = static_cast<uint64_t>(turn * rows + place);
  const double jitter = static_cast<double>(split_mix64(number ^ 0x5eedULL) >> 11) * 0x1.0p-53;
  return (static_cast<double>((place * stride + first) % rows) + jitter) / static_cast<double>(rows);
}

std::vector<HeldOutVisit> plan_held_out(int64_t step, int64_t rows, int64_t pictures, int64_t pseudo_rows, int64_t rank,
                                        int64_t rows_per_rank) {
  std::vector<HeldOutVisit> visits;
  for (int64_t place = rank * rows_per_rank; place < (rank + 1) * rows_per_rank; ++place) {
    const int64_t number = step * rows + place;
    HeldOutVisit visit;
    visit.place = place;
    visit.id = shuffled(number % pseudo_rows, pseudo_rows, static_cast<uint64_t>(number / pseudo_rows));
    visit.picture = visit.id % pictures;
    visit.timestep_fraction = stratified_time(step, place, rows);
    visits.push_back(visit);
  }
  return visits;
}

}  // namespace memsieve
