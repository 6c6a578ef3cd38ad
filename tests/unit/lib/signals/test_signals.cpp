// Signals beyond the built-in ones, the predictions they need, and rows that have none.
#include <ATen/ATen.h>
#include <memsieve/error.h>

#include <cmath>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_signals {

using Catch::Contains;
using namespace memsieve;

namespace {

const std::string kRest =
    ", standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, drop: 1e9}, probe: {kind: budget, "
    "fraction: 0.5}}";

/// Shows the sum of the signals that it is told to read.
struct Sum final : Filter {
  explicit Sum(std::vector<std::string> names) : names(std::move(names)) {}
  Needs needs() const override { return {.signals = names}; }
  at::Tensor score(const SignalView& view) const override {
    auto sum = at::zeros_like(view.timestep);
    for (const auto& name : names) sum = sum + view.signal(name);
    return sum;
  }
  std::vector<std::string> names;
};

/// How far the prediction has come from another model's, in one direction or in size.
at::Tensor drift(const SignalRows& rows) {
  return (rows.prediction - rows.counterfactual).flatten(1).mean(1);
}
at::Tensor distance(const SignalRows& rows) {
  return (rows.prediction - rows.counterfactual).flatten(1).norm(2, {1});
}

/// What a plug-in would add: signals `drift` and `distance` (counterfactual `start`), `bias` (none), and filter `sum`.
Setup with_signals(const std::vector<std::string>& read) {
  Setup setup = toy::setup(50, 8);
  auto& signals = setup.filters.signals();
  signals.add({"drift", "", "start", drift});
  signals.add({"distance", "", "start", distance, /*is_norm=*/true});
  signals.add({"bias", "", "", [](const SignalRows& r) { return (r.prediction - r.target).flatten(1).mean(1); }});
  setup.filters.add({"sum", "", {}, [read](const Settings&) { return std::make_unique<Sum>(read); }});
  return setup;
}

Sieve make(const std::string& filters, const Setup& setup, const std::string& rest = kRest) {
  return Sieve::from_text("sieve: {filters: {" + filters + "}" + rest, "test", std::make_shared<SoloComm>(), setup);
}

/// Eight rows whose starting model predicts 1 less in each element.
Batch some_batch(const toy::Model& model) {
  return toy::batch_of(model, toy::make_step(8, 50, 1, 0), 0, 8);
}

/// The raw scores of filter `sum` on a batch, of the rows where it has any.
std::vector<float> raw_of(Sieve& sieve, const Batch& batch) {
  sieve.inspect(batch, {});
  sieve.end_step({});
  return sieve.take_reports().at(0).raw.back();
}

std::string complaint(Sieve& sieve, const Batch& batch) {
  sieve.inspect(batch, {});
  try {
    sieve.end_step({});
  } catch (const PeerError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a signal of one's own: measured on the probed rows alone, one prediction for all that share it",
          "[signals]") {
  const toy::Model model;
  auto batch = some_batch(model);
  int calls = 0;
  at::Tensor asked;
  batch.counterfactuals["start"] = [&](const at::Tensor& rows) {
    ++calls;
    asked = rows;
    return batch.prediction.index_select(0, rows) - 1;
  };
  auto sieve = make("sum: {}, prediction_error: {}", with_signals({"drift", "distance"}));
  const auto raw = raw_of(sieve, batch);
  CHECK(calls == 1);
  CHECK(asked.size(0) == 4);  // half of eight
  REQUIRE(raw.size() == 4);
  for (const float value : raw) CHECK(value == Approx(1 + std::sqrt(6.0)));
}

TEST_CASE("a signal without a counterfactual is measured for every row and asks for no prediction", "[signals]") {
  const toy::Model model;
  auto batch = some_batch(model);
  batch.null_prediction = [](const at::Tensor&) -> at::Tensor { throw std::runtime_error("asked for"); };
  auto sieve = make("sum: {}", with_signals({"bias"}));
  const auto raw = raw_of(sieve, batch);
  const auto expected = (batch.prediction - batch.target).to(at::kFloat).mean(1).detach();
  CHECK(at::allclose(at::tensor(raw), expected));
}

TEST_CASE("the empty caption's prediction may be given by its name or by its short form", "[signals]") {
  const toy::Model model;
  const auto batch = some_batch(model);
  auto named = batch;
  named.counterfactuals["null"] = std::exchange(named.null_prediction, nullptr);
  auto one = make("magnitude: {}", with_signals({})), other = make("magnitude: {}", with_signals({}));
  CHECK(raw_of(one, batch) == raw_of(other, named));
}

TEST_CASE("a counterfactual prediction that is missing or misshapen is named", "[signals]") {
  const toy::Model model;
  auto batch = some_batch(model);
  auto sieve = make("sum: {}", with_signals({"distance"}));
  CHECK_THAT(complaint(sieve, batch),
             Contains("batch: the counterfactual prediction 'start' is missing, but the signal distance (filter sum) "
                      "needs it; set Batch::counterfactuals[\"start\"]"));
  batch.null_prediction = nullptr;
  auto published = make("magnitude: {}", with_signals({}));
  CHECK_THAT(complaint(published, batch), Contains("'null' is missing") && Contains("set Batch::null_prediction"));
  batch.counterfactuals["start"] = [](const at::Tensor& rows) { return at::zeros({rows.size(0), 1}); };
  auto again = make("sum: {}", with_signals({"distance"}));
  CHECK_THAT(complaint(again, batch), Contains("counterfactuals[\"start\"] returned another shape than prediction's"));
}

TEST_CASE("a filter's signals must be registered, and read only if named", "[signals]") {
  CHECK_THROWS_WITH(
      make("sum: {}", with_signals({"drifft"})),
      Contains("filters.sum: reads the signal 'drifft', which is not registered; known signals: "
               "prediction_error, magnitude, start_gap, caption_gain, guidance_gap, drift, distance, bias"));
  SignalRegistry registry;
  registry.add({"a", "", "", drift});
  CHECK_THROWS_WITH(registry.add({"a", "", "", drift}), Contains("signal 'a' is registered twice"));
  CHECK_THROWS_WITH(registry.add({"b", "", "", nullptr}), Contains("needs a name and a `measure` function"));
  CHECK_THROWS_WITH(SignalView{}.signal("drift"), Contains("reads the signal 'drift' without naming it"));
}

TEST_CASE("a signal's error and its wrong shape name it; its NaN is a broken row", "[signals]") {
  const toy::Model model;
  const auto batch = some_batch(model);
  const auto says = [&](const std::function<at::Tensor(const SignalRows&)>& measure) {
    auto setup = with_signals({"odd"});
    setup.filters.signals().add({"odd", "", "", measure});
    auto sieve = make("sum: {}", setup);
    try {
      raw_of(sieve, batch);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK_THAT(says([](const SignalRows&) -> at::Tensor { throw std::runtime_error("no luck"); }),
             Contains("rank 0: signal odd: no luck"));
  CHECK_THAT(says([](const SignalRows&) { return at::zeros({3}); }), Contains("signal odd: must have the shape [8]"));
  CHECK_THAT(says([](const SignalRows& r) { return r.timestep / 0 - r.timestep / 0; }), Contains("NaN or Inf"));
}

TEST_CASE("standardise.by: rms takes any filter that reads a norm", "[signals]") {
  const std::string rms = ", standardise: {by: rms}, evidence: {kind: visit}, threshold: {kind: fixed, drop: 1}}";
  CHECK_NOTHROW(make("sum: {}", with_signals({"distance"}), rms));
  CHECK_THROWS_WITH(make("sum: {}", with_signals({"drift"}), rms),
                    Contains("rms is for the magnitude alone; sum is no"));
}

}  // namespace of_test_signals
