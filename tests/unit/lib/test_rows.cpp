// Rows that are left alone, and rows of several kinds.
#include <ATen/ATen.h>
#include <memsieve/error.h>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_rows {

using Catch::Contains;
using namespace memsieve;

namespace {

constexpr int64_t kSteps = 24, kRows = 16, kSamples = 12;

const std::string kTraining = R"(
sieve:
  filters: {magnitude: {scale: log}, prediction_error: {}}
  standardise: {by: timestep, population: training, bins: 2, window: 32, min_count: 6}
  evidence: {kind: ledger, visits: 4, min_visits: 1}
  threshold: {kind: quantile, drop: 0.7, release: 0.6}
  probe: {kind: budget, fraction: 0.5}
  block_rows: 4
)";

/// Changes the rows [from, to) of a step's batch.
using Change = std::function<void(Batch& batch, int64_t step, int64_t from, int64_t to)>;

struct Outcome {
  /// [steps, rows] in global order
  at::Tensor weights;
  std::map<std::string, at::Tensor> state;
  std::vector<StepReport> reports;
};

/// Shows `take` of each block of four rows (4 = all) on `ranks` ranks.
Outcome run(const std::string& yaml, int64_t ranks, int64_t strata, const Change& change, int64_t take = 4) {
  Outcome out;
  std::vector<at::Tensor> weights(kSteps);
  const auto errors = toy::on_ranks(ranks, [&](auto comm) {
    auto setup = toy::setup(kSamples, kRows, ranks);
    setup.strata = strata;
    auto sieve = Sieve::from_text(yaml, "test", comm, setup);
    const toy::Model model;
    const int64_t rows = kRows / ranks, from = comm->rank() * rows;
    for (int64_t s = 0; s < kSteps; ++s) {
      auto step = toy::make_step(kRows, kSamples, 7, s);
      if (take < 4) {
        const auto kept = at::nonzero(at::arange(kRows) % 4 < take).squeeze(1);
        for (auto* t : {&step.ids, &step.t, &step.x, &step.caption, &step.target}) *t = t->index_select(0, kept);
      }
      const int64_t to = take < 4 ? step.ids.size(0) : from + rows;
      auto batch = toy::batch_of(model, step, from, to);
      change(batch, s, from, to);
      const auto plan = sieve.inspect(batch, {s, 0});
      sieve.end_step({s, 0});
      const auto all = comm->all_gather(plan.weight());
      if (comm->rank() == 0) weights[s] = all.reshape({-1});
    }
    if (comm->rank() == 0) {
      out.state = sieve.state();
      out.reports = sieve.take_reports();
    }
  });
  for (const auto& error : errors) REQUIRE(error == "");
  out.weights = at::stack(weights);
  return out;
}

void check_same_state(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  for (const auto& [name, tensor] : a) {
    if (tensor.dim() == 0) continue;  // counts of rows, recorded or not
    INFO(name);
    // The last row of most takes what must not be kept.
    const int64_t rows = std::max<int64_t>(1, tensor.size(0) - 1);
    CHECK(at::allclose(tensor.slice(0, 0, rows), b.at(name).slice(0, 0, rows), 0, 0, /*equal_nan=*/true));
  }
}

void nothing(Batch&, int64_t, int64_t, int64_t) {}

/// The last two of each four rows are exempt, and look as memorised as can be.
void exempt_half(Batch& batch, int64_t, int64_t from, int64_t to) {
  batch.exempt = at::arange(from, to) % 4 >= 2;
  batch.target = at::where(batch.exempt.unsqueeze(1), batch.prediction.detach(), batch.target);
}

}  // namespace

TEST_CASE("exempt rows weigh 1 and leave no trace in the statistics", "[rows]") {
  // Every row is probed, so that the budget, which counts rows, does not tell the runs apart.
  const std::string every = kTraining + "\n";
  const auto yaml = every.substr(0, every.find("  probe:"));
  const auto with = run(yaml, 1, 1, exempt_half), without = run(yaml, 1, 1, nothing, 2);
  const auto exempt = at::arange(kRows) % 4 >= 2;
  CHECK(with.weights.index({exempt.unsqueeze(0).expand({kSteps, kRows})}).min().item<float>() == 1);
  const auto judged = with.weights.masked_select(exempt.logical_not()).reshape({kSteps, -1});
  CHECK(at::equal(judged, without.weights));
  CHECK(judged.min().item<float>() == 0);  // samples that are dropped elsewhere are spared here
  check_same_state(with.state, without.state);
}

TEST_CASE("a probe budget is spent on rows that are not exempt", "[rows]") {
  const auto out = run(kTraining, 1, 1, exempt_half);
  for (const auto& report : out.reports) CHECK(report.probed == kRows / 2);
}

TEST_CASE("exempt rows train like rows of the plain loop, and their NaN is no secret", "[rows]") {
  const std::string drop_all =
      "sieve: {filters: {prediction_error: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: "
      "fixed, drop: -1e9}}";
  auto sieve = Sieve::from_text(drop_all, "test", std::make_shared<SoloComm>(), toy::setup(kSamples, 8));
  toy::Model model, plain;
  const auto step = toy::make_step(8, kSamples, 3, 0);
  auto batch = toy::batch_of(model, step, 0, 8);
  batch.exempt = at::arange(8) < 4;
  const auto plan = sieve.inspect(batch, {});
  CHECK(at::equal(plan.weight(), (at::arange(8) < 4).to(at::kFloat)));
  plan.loss(toy::per_sample_loss(batch)).backward();
  const auto end = sieve.end_step({});
  toy::per_sample_loss(toy::batch_of(plain, step, 0, 4)).mean().backward();
  CHECK(at::allclose(model.weight.grad() / end.grad_scale, plain.weight.grad(), 1e-6, 1e-7));
  batch.target = at::full_like(batch.target, std::nan(""));
  batch.exempt = at::ones({8}, at::kBool);
  sieve.inspect(batch, {1, 0});
  CHECK_THROWS_AS(sieve.end_step({1, 0}), NonFiniteError);
}

namespace {

/// Odd rows are of the second stratum, where every error is a thousand times as large.
void two_strata(Batch& batch, int64_t, int64_t from, int64_t to) {
  batch.stratum = at::arange(from, to) % 2;
  const auto factor = at::where(batch.stratum == 1, std::sqrt(1000.0), 1.0).unsqueeze(1);
  batch.target = batch.prediction.detach() + (batch.target - batch.prediction.detach()) * factor;
}

const std::string kErrorAlone = R"(
sieve:
  filters: {prediction_error: {}}
  standardise: {by: timestep, population: training, bins: 2, window: 32, min_count: 6, clip: 100}
  evidence: {kind: visit}
  threshold: {kind: fixed, drop: 1.5}
)";

}  // namespace

TEST_CASE("a row is compared with rows of its own stratum: their scale does not matter", "[rows]") {
  const auto labelled = [](Batch& batch, int64_t, int64_t from, int64_t to) {
    batch.stratum = at::arange(from, to) % 2;
  };
  const auto unlabelled = [](Batch& batch, int64_t s, int64_t from, int64_t to) {
    two_strata(batch, s, from, to);
    batch.stratum = at::Tensor();
  };
  const auto two = run(kErrorAlone, 1, 2, two_strata), plain = run(kErrorAlone, 1, 1, nothing);
  CHECK(at::equal(two.weights, run(kErrorAlone, 1, 2, labelled).weights));
  CHECK_FALSE(at::equal(run(kErrorAlone, 1, 1, unlabelled).weights, plain.weights));
  CHECK(two.weights.slice(1, 1, kRows, 2).min().item<float>() == 0);
  CHECK(two.state.at("scores").size(0) == 2 * (plain.state.at("scores").size(0) - 1) + 1);
}

TEST_CASE("strata of equal rows are judged alike on 1, 2 and 4 ranks", "[rows]") {
  const auto change = [](Batch& batch, int64_t s, int64_t from, int64_t to) {
    two_strata(batch, s, from, to);
    batch.exempt = at::arange(from, to) % 8 == 5;
  };
  const auto alone = run(kTraining, 1, 2, change);
  for (const int64_t ranks : {2, 4}) {
    const auto many = run(kTraining, ranks, 2, change);
    CHECK(at::equal(alone.weights, many.weights));
    check_same_state(alone.state, many.state);
  }
}

TEST_CASE("a stratum or a mark that breaks the contract is named", "[rows]") {
  const toy::Model model;
  const auto complaint = [&](const std::function<void(Batch&)>& spoil) {
    auto sieve = Sieve::from_text(kErrorAlone, "test", std::make_shared<SoloComm>(), toy::setup(kSamples, 8));
    auto batch = toy::batch_of(model, toy::make_step(8, kSamples, 1, 0), 0, 8);
    spoil(batch);
    sieve.inspect(batch, {});
    try {
      sieve.end_step({});
    } catch (const PeerError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK_THAT(complaint([](Batch& b) { b.stratum = at::ones({8}, at::kLong); }),
             Contains("stratum 1 is out of range [0, 1); Setup::strata says how many there are"));
  CHECK_THAT(complaint([](Batch& b) { b.stratum = at::zeros({8}); }), Contains("stratum must be int64 [8]"));
  CHECK_THAT(complaint([](Batch& b) { b.exempt = at::zeros({7}, at::kBool); }),
             Contains("exempt must have the shape [8]"));
}

}  // namespace of_test_rows
