#include "judge/probe.h"

#include <ATen/ATen.h>

#include <limits>
#include <vector>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_probe {

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

namespace {

constexpr float kNone = std::numeric_limits<float>::quiet_NaN();

/// Two of eight rows by what was known before: four slots each way.
std::vector<int64_t> chosen(const Probe& probe, const at::Tensor& score, const at::Tensor& flagged,
                            const at::Tensor& alike = {}, const at::Tensor& eligible = at::ones({8}, at::kBool)) {
  const auto rows =
      probe.choose_by_past(at::arange(8), score, alike, flagged, at::full({}, 2.4), eligible, 8).contiguous();
  return {rows.const_data_ptr<int64_t>(), rows.const_data_ptr<int64_t>() + rows.size(0)};
}

Probe probe_of_two(double likeness = 0) {
  return {{.kind = ProbeOptions::Kind::budget, .fraction = 0.25, .likeness = likeness}, 8, at::kCPU};
}

void visit(Probe& probe, int64_t times, const std::vector<int64_t>& probed) {
  auto now = at::zeros({8}, at::kBool);
  for (const int64_t slot : probed) now[slot] = true;
  for (int64_t i = 0; i < times; ++i) probe.fold(at::arange(8), at::ones({8}, at::kBool), now);
}

}  // namespace

TEST_CASE("probes go to the highest evidence, then to the rows that waited longest", "[probe]") {
  auto probe = probe_of_two();
  const auto nobody = at::zeros({8}, at::kBool), nothing = at::full({8}, kNone);
  visit(probe, 3, {0, 1, 2, 3, 4, 5});
  CHECK(chosen(probe, nothing, nobody) == std::vector<int64_t>{6, 7});
  auto score = nothing.clone();
  score[2] = 1.F;
  score[3] = -5.F;  // unsuspicious is no worse than unknown
  CHECK(chosen(probe, score, nobody) == std::vector<int64_t>{2, 6});
  visit(probe, 2, {2});  // a unit of evidence is worth four visits
  CHECK(chosen(probe, score, nobody) == std::vector<int64_t>{6, 7});
}

TEST_CASE("rows judged memorised wait the longer the surer they are", "[probe]") {
  auto probe = probe_of_two();
  auto flagged = at::zeros({8}, at::kBool), score = at::zeros({8});
  flagged.slice(0, 0, 2).fill_(true);
  score[0] = 9.F;
  score[1] = 2.5F;
  const std::vector<int64_t> others{2, 3, 4, 5, 6, 7};
  visit(probe, 1, others);
  CHECK(chosen(probe, score, flagged) == std::vector<int64_t>{2, 3});
  visit(probe, 1, others);
  CHECK(chosen(probe, score, flagged) == std::vector<int64_t>{1, 2});  // 1.1 visits
  visit(probe, 5, others);
  CHECK(chosen(probe, score, flagged) == std::vector<int64_t>{1, 2});
  visit(probe, 1, others);
  CHECK(chosen(probe, score, flagged) == std::vector<int64_t>{0, 1});  // 7.6 visits
}

TEST_CASE("rows with copies are probed first, whatever they have shown, rows that cannot be scored last", "[probe]") {
  const auto probe = probe_of_two(6);
  const auto nobody = at::zeros({8}, at::kBool);
  auto score = at::zeros({8}), alike = at::zeros({8});
  score[1] = 2.F;
  score[6] = 5.F;
  alike[5] = 1.F;
  alike[6] = 0.25F;
  alike[7] = 0.5F;
  CHECK(chosen(probe, score, nobody, alike) == std::vector<int64_t>{5, 7});
  alike[7] = 0.F;
  CHECK(chosen(probe, score, nobody, alike) == std::vector<int64_t>{5, 1});
  auto eligible = at::ones({8}, at::kBool);
  eligible[5] = false;
  CHECK(chosen(probe, score, nobody, alike, eligible) == std::vector<int64_t>{1, 6});
}

}  // namespace of_test_probe
