// Law 6 where the model's passes are collectives, as with FSDP: whatever is wrong with one rank's batch, each
// counterfactual prediction is asked for as often as on the other ranks, of as many rows, or these would wait.
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <functional>
#include <map>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_equal_asking {

using memsieve::Batch;
using memsieve::Sieve;

namespace {

constexpr int64_t kSamples = 24, kRows = 8, kRanks = 2, kMicro = 2;

const std::string kHead = R"(sieve:
  filters: {magnitude: {scale: log}, start_gap: {}}
  standardise: {by: timestep, population: held_out, bins: 2, window: 16, min_count: 4}
  action: {pass_over: true}
  revisit: {rows: 4, every: 2}
  held_out: {rows: 10, every: 2}
  block_rows: 4
)";
const std::string kLedger = kHead +
                            "  evidence: {kind: ledger, visits: 4, min_visits: 1}\n"
                            "  threshold: {kind: held_out, drop: 0.3, release: 0.5}\n  probe: ";
const std::string kDiscounted = kHead + "  evidence: {kind: discounted}\n  threshold: {kind: rate}\n  probe: ";

/// What was asked for, a line each: in which call, which prediction, of how many rows.
using Asked = std::vector<std::string>;

memsieve::Counterfactual wrong(bool shape) {
  return [shape](const at::Tensor& rows) -> at::Tensor {
    if (!shape) throw std::runtime_error("no luck");
    return at::zeros({rows.size(0), 3});
  };
}

const std::map<std::string, std::function<void(Batch&)>> kMistakes{
    {"id out of range", [](Batch& b) { b.sample_id = at::full_like(b.sample_id, 1000000); }},
    {"no ids", [](Batch& b) { b.sample_id = at::Tensor(); }},
    {"no timestep", [](Batch& b) { b.timestep = at::Tensor(); }},
    {"shape of the target", [](Batch& b) { b.target = b.target.slice(1, 1); }},
    {"shape of likeness", [](Batch& b) { b.likeness = at::zeros({1}); }},
    {"no prediction", [](Batch& b) { b.prediction = at::Tensor(); }},
    {"a scalar", [](Batch& b) { b.prediction = at::zeros({}); }},
    {"no rows", [](Batch& b) { b.prediction = b.prediction.slice(0, 0, 0); }},
    {"too many rows",
     [](Batch& b) {
       b.prediction = at::cat({b.prediction, b.prediction, b.prediction});
     }},
    {"integers", [](Batch& b) { b.prediction = b.prediction.to(at::kLong); }},
    {"a callable that throws", [](Batch& b) { b.counterfactuals["null"] = wrong(false); }},
    {"a callable of another shape", [](Batch& b) { b.counterfactuals["null"] = wrong(true); }},
};

/// Rows [from, to) of `step`; each prediction that is asked for in `call` is noted.
Batch noted(const toy::Model& model, const toy::Step& step, int64_t from, int64_t to, const std::string& call,
            Asked& asked, const std::function<void(Batch&)>& spoil) {
  Batch batch = toy::batch_of(model, step, from, to);
  batch.counterfactuals = {{"null", batch.null_prediction}, {"start", batch.null_prediction}};
  spoil(batch);
  for (auto& [name, make] : batch.counterfactuals) {
    make = [make, call, name = name, &asked](const at::Tensor& rows) {
      asked.push_back(call + ": " + name + " of " + std::to_string(rows.size(0)) +
                      (at::GradMode::is_enabled() ? ", with gradient" : ""));
      return make(rows);
    };
  }
  return batch;
}

template <typename Seen>
toy::Step step_of(const std::vector<Seen>& seen) {
  auto step = toy::make_step(static_cast<int64_t>(seen.size()), kSamples, 3, 0);
  for (size_t i = 0; i < seen.size(); ++i) step.ids[static_cast<int64_t>(i)] = seen[i].id;
  return step;
}

/// What one rank is asked for in step `number`, all batches of which `spoil` changes.
Asked asked_in(Sieve& sieve, int64_t rank, int64_t number, int64_t rows, const std::function<void(Batch&)>& spoil) {
  Asked asked;
  const toy::Model model;
  const memsieve::Clock clock{number, 0};
  for (int64_t m = 0; m < kMicro; ++m) {
    const auto step = toy::make_step(rows * kRanks, kSamples, 5 + m, number);
    const std::string call = "inspect " + std::to_string(m);
    sieve.inspect(noted(model, step, rank * rows, (rank + 1) * rows, call, asked, spoil), clock);
  }
  if (const auto visits = sieve.held_out_visits(number); !visits.empty()) {
    const auto count = static_cast<int64_t>(visits.size());
    sieve.observe(noted(model, step_of(visits), 0, count, "observe", asked, spoil), clock);
  }
  if (const auto looks = sieve.looks(number); !looks.empty()) {
    const auto count = static_cast<int64_t>(looks.size());
    sieve.look(noted(model, step_of(looks), 0, count, "look", asked, spoil), clock);
  }
  return asked;
}

memsieve::Setup setup() {
  auto s = toy::setup(kSamples, kRows * kRanks * kMicro, kRanks, kMicro);
  s.held_out_size = 10;
  return s;
}

}  // namespace

TEST_CASE("law 6: with any mistake in one rank's batches, all ranks ask the model equally often", "[law]") {
  const std::string rule = GENERATE(kLedger, kDiscounted);
  const std::string probe = GENERATE("{kind: every}", "{kind: budget, fraction: 0.3, every: 2}");
  const int64_t number = GENERATE(0, 1);  // in the second no rows are held out or looked at, nor probed with a budget
  for (const auto& [name, spoil] : kMistakes) {
    CAPTURE(rule, probe, number, name);
    std::vector<Asked> asked(kRanks);
    const auto errors = toy::on_ranks(kRanks, [&, &spoil = spoil](auto comm) {
      auto sieve = Sieve::from_text(rule + probe, "test", comm, setup());
      const bool guilty = comm->rank() == 1;
      asked[static_cast<size_t>(comm->rank())] = asked_in(
          sieve, comm->rank(), number, kRows, guilty ? spoil : [](Batch&) {});
      sieve.end_step({number, 0});
    });
    const bool asks = number == 0 || probe == "{kind: every}";
    CHECK(asked[0].size() == (!asks ? 0 : number == 0 ? 2 * (kMicro + 2) : 2 * kMicro));
    CHECK(asked[1].size() == asked[0].size());
    for (auto& one : asked) std::sort(one.begin(), one.end());
    CHECK(asked[1] == asked[0]);
    // Where no rank asks, a callable's mistake is none.
    const bool found = asks || name.rfind("a callable", 0) != 0;
    const std::string who = "step " + std::to_string(number) + ": rank 1: ";
    for (const auto& error : errors) CHECK(error.substr(0, who.size()) == (found ? who : ""));
    for (const auto& line : asked[1]) CHECK_THAT(line, !Catch::Contains("gradient"));
  }
}

TEST_CASE("a short batch with a mistake asks for as many rows as a sound one", "[law]") {
  for (const std::string probe : {"{kind: every}", "{kind: budget, fraction: 0.3}"}) {
    const auto asked = [&](const std::string& mistake) {
      auto sieve = Sieve::from_text(kLedger + probe, "test", std::make_shared<memsieve::SoloComm>(), setup());
      auto all = asked_in(sieve, 0, 1, 5, mistake.empty() ? [](Batch&) {} : kMistakes.at(mistake));
      std::sort(all.begin(), all.end());
      return all;
    };
    CHECK(asked("no ids") == asked(""));
  }
}

TEST_CASE("what no rank would ask for is not asked for after a mistake: a call too many", "[law]") {
  auto sieve = Sieve::from_text(kLedger + "{kind: every}", "test", std::make_shared<memsieve::SoloComm>(), setup());
  asked_in(sieve, 0, 1, kRows, [](Batch&) {});
  CHECK(asked_in(sieve, 0, 1, kRows, [](Batch&) {}).empty());
  CHECK_THROWS_WITH(sieve.end_step({1, 0}), Catch::Contains("more than micro_batches"));
}

TEST_CASE("the reference pass asks once for a batch with a mistake, too", "[law]") {
  auto sieve = Sieve::from_text(
      "sieve: {filters: {magnitude: {}}, reference: {kind: start_model, draws: 1}, held_out: {rows: 4}}", "test",
      std::make_shared<memsieve::SoloComm>(), setup());
  Asked asked;
  const toy::Model model;
  const auto batch = noted(model, toy::make_step(kRows, kSamples, 5, 0), 0, kRows, "", asked, kMistakes.at("no ids"));
  CHECK_FALSE(sieve.reference(batch, false));
  CHECK(asked == Asked{": null of 1"});
}

}  // namespace of_test_equal_asking
