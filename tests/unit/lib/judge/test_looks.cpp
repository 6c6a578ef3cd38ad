// Which flagged samples are looked at, by how sure their verdict was and whether others share it.
#include <support/toy.h>

#include <map>

#include "judge/flags.h"
#include "judge/judge.h"

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_looks {

using namespace memsieve;

namespace {

constexpr int64_t kSamples = 12, kSteps = 4000;

/// A line of a sample that was judged memorised.
at::Tensor flagged_line(int64_t sample, double beyond, bool together) {
  const RecordShape shape{.channels = 1};
  auto line = at::zeros({shape.width()}, at::kDouble);
  line[RecordShape::present] = line[RecordShape::counted] = line[RecordShape::flagged] = 1.0;
  line[RecordShape::id] = static_cast<double>(sample);
  line[RecordShape::score] = 2 + beyond;
  line[RecordShape::threshold] = 2.0;
  line[RecordShape::together] = together ? 1.0 : 0.0;
  return line;
}

/// Looks at samples 0 to 11, one a step, of which the first four lie 1 beyond the level, the next four 3, and the last
/// four 1 but together with each other.
std::map<int64_t, int64_t> looks_at_each() {
  JudgeOptions options;
  options.action.pass_over = true;
  options.revisit = {.rows = 1, .every = 1};
  Flags flags(options, toy::setup(kSamples, 4));
  const auto line_of = [](int64_t sample) { return flagged_line(sample, sample / 4 == 1 ? 3 : 1, sample / 4 == 2); };
  std::map<int64_t, int64_t> looks;
  for (int64_t step = 0; step < kSteps; ++step) {
    Gathered host;
    const auto none = at::zeros({0, RecordShape{.channels = 1}.width()}, at::kDouble);
    host.training = host.looks = none;
    if (step == 0) {
      std::vector<at::Tensor> all;
      for (int64_t sample = 0; sample < kSamples; ++sample) all.push_back(line_of(sample));
      host.training = at::stack(all);
    } else if (step > kFlagLag) {
      const auto planned = flags.looks(step);
      REQUIRE(planned.size() == 1);
      REQUIRE(planned[0].counted);
      ++looks[planned[0].look.id];
      host.looks = line_of(planned[0].look.id).unsqueeze(0);
    }
    flags.ended(step);
    flags.add(step, host);
  }
  return looks;
}

}  // namespace

TEST_CASE("looks come half as often for verdicts twice as sure, and for samples judged together in turns", "[looks]") {
  const auto looks = looks_at_each();
  const auto of = [&](int64_t first) {
    double sum = 0;
    for (int64_t sample = first; sample < first + 4; ++sample) {
      CHECK(looks.at(sample) > 0);
      sum += static_cast<double>(looks.at(sample));
    }
    return sum;
  };
  CHECK(of(0) / of(4) == Approx(2).epsilon(0.05));
  CHECK(of(0) / of(8) == Approx(16).epsilon(0.1));
}

}  // namespace of_test_looks
