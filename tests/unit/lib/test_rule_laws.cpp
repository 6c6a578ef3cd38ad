// The laws under the recommended rule: discounted sums, likeness, flagged samples that leave the batch, looks.
#include <cmath>
#include <map>

#include <support/operators.h>
#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_rule_laws {

using memsieve::Sieve;
using State = std::map<std::string, at::Tensor>;

namespace {

constexpr int64_t kSamples = 40, kRows = 16, kSteps = 60;

const std::string kRule = R"(
sieve:
  filters: {start_gap: {}}
  standardise: {by: timestep, population: held_out, bins: 3, window: 100, min_count: 10, clip: 8}
  evidence: {kind: discounted, discount: 0.9, spread: 3, spread_alike: 0.1, min_visits: 1}
  threshold: {kind: rate, false_drop_rate: 0.01}
  action: {kind: drop, pass_over: true}
  revisit: {rows: 8, every: 4}
  probe: {kind: budget, fraction: 0.25, likeness: 6}
  block_rows: 4
  held_out: {rows: 8, every: 2}
)";

/// The same filter under the rule of before.
const std::string kLedgerRule = R"(
sieve:
  filters: {start_gap: {}}
  standardise: {by: timestep, population: held_out, bins: 3, window: 100, min_count: 10, clip: 8}
  evidence: {kind: ledger, visits: 4}
  threshold: {kind: held_out, drop: 0.01, release: 0.2}
  action: {kind: drop, pass_over: true}
  revisit: {rows: 8, every: 4}
  probe: {kind: budget, fraction: 0.25}
  block_rows: 4
  held_out: {rows: 8, every: 2}
)";

/// A level that rests on the held-out rows' evidence, and so on how wide it is.
const std::string kHeldOutLevel = "{kind: held_out, drop: 0.05, release: 0.2}";

std::string with(std::string yaml, const std::string& words, const std::string& others) {
  return yaml.replace(yaml.find(words), words.size(), others);
}

memsieve::Setup setup_of(int64_t ranks) {
  auto setup = toy::setup(kSamples, kRows, ranks);
  setup.held_out_size = 16;
  return setup;
}

Sieve make(const std::string& yaml, int64_t ranks = 1,
           const std::shared_ptr<memsieve::Communicator>& comm = std::make_shared<memsieve::SoloComm>()) {
  return Sieve::from_text(yaml, "test", comm, setup_of(ranks));
}

/// Rows [from, to) of a step: ten kinds of samples, of which the model has learned the first two.
memsieve::Batch batch_of(const toy::Model& model, const toy::Step& step, int64_t from, int64_t to, bool held_out) {
  auto batch = toy::batch_of(model, step, from, to);
  const auto kind = batch.sample_id.remainder(10);
  const auto kinds = at::randn({10, 40}, at::detail::createCPUGenerator(11));
  batch.likeness = kinds.index_select(0, kind);
  const auto learned = held_out ? at::zeros_like(kind, at::kBool) : kind < 2;
  const auto gap = at::where(learned, at::full({}, 2.0), at::full({}, 1.0)).unsqueeze(1);
  const auto error = batch.prediction.detach() - batch.target;
  const auto start = batch.target + error * gap * (1 + 0.1 * step.x.slice(0, from, to));
  batch.counterfactuals["start"] = [start](const at::Tensor& rows) { return start.index_select(0, rows); };
  return batch;
}

/// Rank `rank` of `ranks` takes step `s`; the weights of its rows.
at::Tensor take_step(Sieve& sieve, int64_t s, int64_t rank = 0, int64_t ranks = 1) {
  const toy::Model model;
  auto step = toy::make_step(kRows, kSamples, 7, s);
  const auto flagged = sieve.flagged(s);
  std::vector<int64_t> passed;
  for (int64_t i = 0; i < kRows; ++i) {
    auto id = step.ids[i].item<int64_t>();
    if (flagged[id].item<bool>()) passed.push_back(id);
    while (flagged[id].item<bool>()) id = (id + 1) % kSamples;
    step.ids[i] = id;
  }
  sieve.pass_over(passed, {s, 0});
  const int64_t rows = kRows / ranks;
  const auto plan = sieve.inspect(batch_of(model, step, rank * rows, (rank + 1) * rows, false), {s, 0});
  if (const auto visits = sieve.held_out_visits(s); !visits.empty()) {
    auto seen = toy::make_step(8, kSamples, 8, s);
    for (const auto& visit : visits) {
      seen.ids[visit.place] = visit.id;
      seen.t[visit.place] = static_cast<int64_t>(visit.timestep_fraction * 1000);
    }
    sieve.observe(batch_of(model, seen, visits.front().place, visits.back().place + 1, true), {s, 0});
  }
  if (const auto looks = sieve.looks(s); !looks.empty()) {
    auto seen = toy::make_step(8, kSamples, 6, s);
    for (size_t i = 0; i < looks.size(); ++i) seen.ids[rank * 8 / ranks + static_cast<int64_t>(i)] = looks[i].id;
    sieve.look(batch_of(model, seen, rank * 8 / ranks, (rank + 1) * 8 / ranks, false), {s, 0});
  }
  sieve.end_step({s, 0});
  return plan.weight();
}

void check_same(const State& a, const State& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    INFO(name);
    CHECK(at::allclose(tensor, b.at(name), 0, 0, /*equal_nan=*/true));
  }
}

/// The weights of all rows in global order, and the last state.
std::pair<at::Tensor, State> run(int64_t ranks) {
  std::vector<at::Tensor> weights(kSteps);
  State state;
  const auto errors = toy::on_ranks(ranks, [&](const auto& comm) {
    auto sieve = make(kRule, ranks, comm);
    for (int64_t s = 0; s < kSteps; ++s) {
      const auto all = comm->all_gather(take_step(sieve, s, comm->rank(), ranks));
      if (comm->rank() == 0) weights[static_cast<size_t>(s)] = all.reshape({-1});
    }
    if (comm->rank() == 0) state = sieve.state();
  });
  REQUIRE(errors == std::vector<std::string>(static_cast<size_t>(ranks)));
  return {at::cat(weights), state};
}

}  // namespace

TEST_CASE("laws 4 and 8, recommended rule: 1, 2 and 4 ranks decide and remember the same", "[law]") {
  const auto [weights, state] = run(1);
  const auto& flagged = state.at("flagged");
  // It finds what there is to find, and likeness takes part.
  CHECK(flagged.slice(0, 0, kSamples).sum().item<int64_t>() >= 6);
  CHECK(flagged.slice(0, 0, kSamples).sum().item<int64_t>() < 20);
  CHECK(state.at("likeness_count")[0].item<int64_t>() > 4);
  for (const int64_t ranks : {2, 4}) {
    INFO(ranks << " ranks");
    const auto [other, other_state] = run(ranks);
    CHECK(at::equal(weights, other));
    check_same(state, other_state);
  }
}

TEST_CASE("law 8, recommended rule: a run resumed at any step goes on as an uninterrupted one, bit for bit", "[law]") {
  const bool held_out_level = GENERATE(false, true);
  const std::string yaml = held_out_level ? with(kRule, "{kind: rate, false_drop_rate: 0.01}", kHeldOutLevel) : kRule;
  CAPTURE(yaml);
  auto whole = make(yaml);
  std::vector<at::Tensor> weights;
  std::vector<double> levels;
  std::map<int64_t, State> states;
  for (int64_t s = 0; s < kSteps; ++s) {
    if (s % 7 == 3) states[s] = whole.state();
    weights.push_back(take_step(whole, s));
    levels.push_back(whole.take_reports().back().drop_level);
  }
  CHECK(std::isfinite(levels.back()));
  for (const auto& [from, state] : states) {
    INFO("resumed at step " << from);
    auto resumed = make(yaml);
    resumed.restore(state);
    for (int64_t s = from; s < kSteps; ++s) {
      REQUIRE(at::equal(take_step(resumed, s), weights[static_cast<size_t>(s)]));
      REQUIRE(resumed.take_reports().back().drop_level == levels[static_cast<size_t>(s)]);
    }
    check_same(resumed.state(), whole.state());
  }
}

TEST_CASE("a step's report tells the drift that was in force", "[law]") {
  auto sieve = make(kRule);
  for (int64_t s = 0; s < 5; ++s) take_step(sieve, s);
  for (const auto& report : sieve.take_reports()) CHECK(report.drift == 0);
  auto state = sieve.state();
  state.at("drift").fill_(0.75);
  auto resumed = make(kRule);
  resumed.restore(state);
  take_step(resumed, 5);
  CHECK(resumed.take_reports().back().drift == 0.75);
}

TEST_CASE("a state of another kind of evidence is refused in one line, and the other way round", "[law]") {
  auto older = make(kLedgerRule), newer = make(kRule);
  const std::string words = "resume with the configuration that the checkpoint was made with";
  CHECK_THROWS_WITH(make(kRule).restore(older.state()), Catch::Contains(words));
  CHECK_THROWS_WITH(make(kLedgerRule).restore(newer.state()), Catch::Contains(words));
  // Without the features that it now asks for.
  auto without = make(kRule.substr(0, kRule.find(", likeness")) + kRule.substr(kRule.find(", likeness") + 13));
  CHECK_THROWS_WITH(make(kRule).restore(without.state()), Catch::Contains("'likeness_mean' is missing"));
}

TEST_CASE("law 5, recommended rule: a step never asks the device for a value", "[law]") {
  auto sieve = make(kRule);
  for (int64_t s = 0; s < 40; ++s) take_step(sieve, s);
  const toy::Model model;
  const auto step = toy::make_step(kRows, kSamples, 7, 40), held = toy::make_step(8, 16, 8, 40);
  const auto batch = batch_of(model, step, 0, kRows, false), other = batch_of(model, held, 0, 8, true);
  auto looked = toy::make_step(8, kSamples, 6, 40);
  const auto looks = sieve.looks(40);
  REQUIRE(looks.size() == 8);
  for (int64_t i = 0; i < 8; ++i) looked.ids[i] = looks[static_cast<size_t>(i)].id;
  const auto again = batch_of(model, looked, 0, 8, false);
  const auto used = toy::operators_of([&] {
    sieve.inspect(batch, {40, 0}).loss(toy::per_sample_loss(batch));
    sieve.observe(other, {40, 0});
    sieve.look(again, {40, 0});
    sieve.end_step({40, 0});
  });
  CHECK(used.count("aten::mm") + used.count("aten::nanquantile") == 2);  // the observer works
  CHECK(toy::waiting_among(used) == "");
}

}  // namespace of_test_rule_laws
