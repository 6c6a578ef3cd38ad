// Ids that are hashes of names leave most of [0, dataset_size) unused: Setup::samples says how many rows there are.
#include <cmath>

#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_hashed_ids {

using memsieve::Sieve;
using toy::scripted;

namespace {

constexpr int64_t kSamples = 20, kPictures = 10, kSteps = 60;

const std::string kLedger = R"(sieve:
  filters: {prediction_error: {}}
  standardise: {by: timestep, population: held_out, bins: 2, window: 64, min_count: 10}
  evidence: {kind: ledger, visits: 4}
  threshold: {kind: held_out, drop: 0.01, release: 0.1}
  held_out: {rows: 10}
)";
const std::string kDiscounted = R"(sieve:
  filters: {prediction_error: {}}
  standardise: {by: timestep, population: held_out, bins: 2, window: 64, min_count: 10, clip: 8}
  evidence: {kind: discounted, spread: 1}
  threshold: {kind: rate}
  held_out: {rows: 10}
)";

/// Errors around 1, those of the first quarter of the samples far lower and of the others somewhat.
at::Tensor errors(int64_t step, int64_t rows, const at::Tensor& lower) {
  const auto g = at::detail::createCPUGenerator(10 * step + rows % 10);
  return (at::randn({rows}, g) * 0.3 - lower).exp();
}

/// The reports of all steps if sample i has the id `stride` * i.
std::vector<memsieve::StepReport> run(const std::string& rule, const memsieve::Setup& setup, int64_t stride) {
  auto sieve = Sieve::from_text(rule, "test", std::make_shared<memsieve::SoloComm>(), setup);
  const auto sample = at::arange(kSamples), low = (sample < kSamples / 4) * 1.5 + 0.2;
  const auto t = at::full({kSamples}, 500);
  for (int64_t step = 0; step < kSteps; ++step) {
    sieve.inspect(scripted(sample * stride, t, errors(step, kSamples, low), at::ones({kSamples})), {step, 0});
    std::vector<int64_t> ids;
    for (const auto& visit : sieve.held_out_visits(step)) ids.push_back(visit.id);
    const auto rows = static_cast<int64_t>(ids.size());
    sieve.observe(
        scripted(at::tensor(ids), at::full({rows}, 500), errors(step, rows, at::zeros({rows})), at::ones({rows})),
        {step, 0});
    sieve.end_step({step, 0});
  }
  return sieve.take_reports();
}

memsieve::Setup setup_for(int64_t dataset_size) {
  auto setup = toy::setup(dataset_size, kSamples);
  setup.held_out_size = kPictures;
  return setup;
}

}  // namespace

TEST_CASE("with Setup::samples a sieve with room for hashed ids decides as one of dense ids", "[sieve]") {
  const std::string rule = GENERATE(kLedger, kDiscounted);
  CAPTURE(rule);
  auto roomy = setup_for(100 * kSamples);
  roomy.samples = kSamples;
  const auto dense = run(rule, setup_for(kSamples), 1), hashed = run(rule, roomy, 97);
  REQUIRE((dense.size() == kSteps && hashed.size() == kSteps));
  CHECK(dense.back().dropped >= kSamples / 4);
  if (rule == kDiscounted) CHECK(dense.back().drift > 0.5);
  for (size_t s = 0; s < kSteps; ++s) {
    CHECK(hashed[s].dropped == dense[s].dropped);
    CHECK(hashed[s].scores == dense[s].scores);
    CHECK(hashed[s].drop_level == Approx(dense[s].drop_level).epsilon(1e-6));
    CHECK(hashed[s].drift == Approx(dense[s].drift).epsilon(1e-6));
  }
}

TEST_CASE("without Setup::samples all of [0, dataset_size) counts as samples", "[sieve]") {
  auto told = setup_for(kSamples);
  told.samples = kSamples;
  const auto left_out = run(kLedger, setup_for(kSamples), 1), as_many = run(kLedger, told, 1);
  for (size_t s = 0; s < kSteps; ++s) CHECK(left_out[s].scores == as_many[s].scores);
  CHECK(std::isinf(run(kLedger, setup_for(100 * kSamples), 97).back().drop_level));
}

}  // namespace of_test_hashed_ids
