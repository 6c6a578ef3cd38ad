// Samples that the loop passes over: who is flagged when, who is looked at again, and what of it is kept.
#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own
#include <map>
#include <mutex>
#include <set>

namespace of_test_flags {

using memsieve::kFlagLag;
using memsieve::Sieve;
using toy::scripted;

namespace {

constexpr int64_t kSamples = 12, kRows = 4;

/// A sample is flagged by a visit whose magnitude is above 2, and released by one that is not.
std::string yaml(const std::string& more = "", const std::string& evidence = "") {
  return "sieve:\n  filters: {magnitude: {}}\n  standardise: {by: none}\n"
         "  evidence: {kind: ledger, visits: 1, min_visits: 1" +
         evidence + "}\n  threshold: {kind: fixed, drop: 2, release: 2}\n  action: {pass_over: true}\n" + more;
}
const std::string kLooks = "  revisit: {rows: 4, every: 1}\n";

Sieve make(const std::string& text, const memsieve::Setup& setup,
           const std::shared_ptr<memsieve::Communicator>& ranks = std::make_shared<memsieve::SoloComm>()) {
  return Sieve::from_text(text, "test", ranks, setup);
}

/// What sample `id` shows in step `step`: above 2 or below, as chance has it.
float magnitude_of(int64_t id, int64_t step) {
  const auto g = at::detail::createCPUGenerator(1000 * step + id);
  return at::rand({}, g).item<float>() < 0.4 ? 3.F : 1.F;
}

memsieve::Batch batch_of(const std::vector<int64_t>& ids, int64_t step) {
  std::vector<float> magnitude;
  for (const int64_t id : ids) magnitude.push_back(magnitude_of(id, step));
  const auto rows = static_cast<int64_t>(ids.size());
  return scripted(at::tensor(ids, at::kLong), at::full({rows}, 500), at::ones({rows}), at::tensor(magnitude));
}

/// Visits of step `step` over all ranks.
std::vector<int64_t> visits(int64_t step) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < kRows; ++i) ids.push_back((step * kRows + 5 * i) % kSamples);
  return ids;
}

std::vector<int64_t> ids_of(const std::vector<memsieve::Look>& looks) {
  std::vector<int64_t> ids;
  for (const auto& look : looks) ids.push_back(look.id);
  return ids;
}

/// One step of a rank that has the rows [from, to) of it; returns what it looked at.
std::vector<int64_t> take_step(Sieve& sieve, int64_t step, int64_t from = 0, int64_t to = kRows) {
  const auto all = visits(step);
  sieve.inspect(batch_of({all.begin() + from, all.begin() + to}, step), {step, 0});
  const auto looks = ids_of(sieve.looks(step));
  if (!looks.empty()) sieve.look(batch_of(looks, step), {step, 0});
  sieve.end_step({step, 0});
  return looks;
}

void check_same(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    INFO(name);
    CHECK(at::allclose(tensor, b.at(name), 0, 0, /*equal_nan=*/true));
  }
}

}  // namespace

TEST_CASE("a flag holds the verdicts up to a fixed number of steps ago, however early it is asked for") {
  auto sieve = make(yaml(), toy::setup(kSamples, kRows));
  // [step] -> the verdict on each sample after it
  std::vector<at::Tensor> verdicts;
  const auto known = [&](int64_t step) {
    return step < kFlagLag ? at::zeros({kSamples}, at::kBool) : verdicts.at(step - kFlagLag);
  };
  int64_t flags = 0;
  for (int64_t step = 0; step < 40; ++step) {
    for (int64_t ahead = 0; ahead <= kFlagLag - 3; ++ahead) {
      const auto flagged = sieve.flagged(step + ahead);
      REQUIRE(at::equal(flagged, known(step + ahead)));
      flags += flagged.sum().item<int64_t>();
    }
    if (step > 0) {
      CHECK_THROWS_WITH(sieve.flagged(step + kFlagLag - 2), Catch::Contains("asked too early"));
      CHECK_THROWS_WITH(sieve.flagged(step - 1), Catch::Contains("has ended already"));
    }
    take_step(sieve, step);
    auto now = verdicts.empty() ? at::zeros({kSamples}, at::kBool) : verdicts.back().clone();
    for (const int64_t id : visits(step)) now[id] = magnitude_of(id, step) > 2;
    verdicts.push_back(now);
  }
  CHECK(flags > 100);
}

TEST_CASE("a run resumed at any step flags and looks as an uninterrupted one does") {
  const auto text = yaml(kLooks);
  const auto setup = toy::setup(kSamples, kRows);
  auto whole = make(text, setup);
  for (int64_t step = 0; step < 20; ++step) {
    auto resumed = make(text, setup);
    whole.flush();
    resumed.restore(whole.state());
    for (int64_t ahead = 0; ahead <= kFlagLag - 3; ++ahead)
      REQUIRE(at::equal(resumed.flagged(step + ahead), whole.flagged(step + ahead)));
    for (int64_t later = step; later < step + 12; ++later) take_step(resumed, later);
    auto further = make(text, setup);
    further.restore(whole.state());
    for (int64_t later = step; later < step + 12; ++later) {
      if (later == step + 5) {  // once more, with verdicts that are not yet to be known
        further.flush();
        const auto state = further.state();
        further = make(text, setup);
        further.restore(state);
      }
      take_step(further, later);
    }
    check_same(resumed.state(), further.state());
    take_step(whole, step);
  }
}

TEST_CASE("any number of ranks flags the same samples and divides the same looks") {
  const auto run = [](int64_t ranks) {
    std::mutex mutex;
    // [step] -> flagged samples, and what was looked at in order
    std::vector<at::Tensor> flagged(30);
    std::vector<std::map<int64_t, std::vector<int64_t>>> looked(30);
    std::map<std::string, at::Tensor> state;
    const auto errors = toy::on_ranks(ranks, [&](const std::shared_ptr<memsieve::Communicator>& comm) {
      auto sieve = make(yaml("  block_rows: 1\n" + kLooks), toy::setup(kSamples, kRows, ranks), comm);
      const int64_t rows = kRows / ranks, rank = comm->rank();
      for (int64_t step = 0; step < 30; ++step) {
        const auto now = sieve.flagged(step);
        const auto mine = take_step(sieve, step, rank * rows, (rank + 1) * rows);
        const std::lock_guard lock(mutex);
        if (flagged[step].defined() && !at::equal(flagged[step], now)) throw std::runtime_error("ranks disagree");
        flagged[step] = now;
        looked[step][rank] = mine;
      }
      if (rank == 0) state = sieve.state();
    });
    REQUIRE(errors == std::vector<std::string>(ranks));
    std::vector<std::vector<int64_t>> looks;
    for (const auto& step : looked) {
      looks.emplace_back();
      for (const auto& [rank, ids] : step) looks.back().insert(looks.back().end(), ids.begin(), ids.end());
    }
    return std::tuple(flagged, looks, state);
  };
  const auto [flagged, looks, state] = run(1);
  for (const int64_t ranks : {2, 4}) {
    INFO(ranks << " ranks");
    const auto [others, other_looks, other_state] = run(ranks);
    for (size_t step = 0; step < flagged.size(); ++step) CHECK(at::equal(flagged[step], others[step]));
    CHECK(looks == other_looks);
    check_same(state, other_state);
  }
  CHECK(flagged.back().any().item<bool>());
}

TEST_CASE("looks go to the flagged samples that were seen longest ago, always the same number of them") {
  auto sieve = make(yaml(kLooks), toy::setup(kSamples, kRows));
  std::map<int64_t, int64_t> looked_at;
  std::map<int64_t, std::vector<int64_t>> visited;  // step -> samples
  for (int64_t step = 0; step < 60; ++step) {
    const auto flagged = sieve.flagged(step);
    const auto looks = sieve.looks(step);
    REQUIRE(looks.size() == 4);
    // What may be known of visits and of looks.
    std::map<int64_t, int64_t> seen = looked_at;
    for (const auto& [when, ids] : visited) {
      if (when > step - kFlagLag) break;
      for (const int64_t id : ids) seen[id] = std::max(seen[id], when);
    }
    std::vector<std::pair<int64_t, int64_t>> expected;
    for (int64_t id = 0; id < kSamples; ++id)
      if (flagged[id].item<bool>()) expected.emplace_back(seen.at(id), id);
    std::sort(expected.begin(), expected.end());
    std::set<int64_t> places, times;
    for (size_t i = 0; i < looks.size(); ++i) {
      if (i < expected.size()) {
        REQUIRE(looks[i].id == expected[i].second);
        looked_at[looks[i].id] = step;
      }
      places.insert(looks[i].place);
      times.insert(static_cast<int64_t>(looks[i].timestep_fraction * 4));
    }
    CHECK(places == std::set<int64_t>{0, 1, 2, 3});
    CHECK(times == std::set<int64_t>{0, 1, 2, 3});
    take_step(sieve, step);
    visited[step] = visits(step);
  }
  CHECK(looked_at.size() == kSamples);
  CHECK_THROWS_WITH(sieve.looks(61), Catch::Contains("the step to come is 60"));
}

TEST_CASE("a look takes back a sample whose evidence has fallen, and leaves the populations alone") {
  const std::string text = R"(sieve:
  filters: {magnitude: {}, prediction_error: {}}
  standardise: {by: timestep, population: training, bins: 1, window: 64, min_count: 8, clip: 40}
  evidence: {kind: ledger, visits: 1, min_visits: 1}
  threshold: {kind: robust_z, drop: 6, release: 4, window: 64}
  action: {pass_over: true}
  probe: {kind: budget, fraction: 0.5}
)";
  const auto setup = toy::setup(16, 8);
  auto with = make(text + "  revisit: {rows: 2, every: 1}\n", setup), without = make(text, setup);
  // Samples 1 to 8 up to step 10, in which sample 1 stands out; then 9 to 15 and, in its place, 8.
  const auto step_of = [](Sieve& sieve, int64_t step, float looked) {
    const auto g = at::detail::createCPUGenerator(step);
    const auto ids = at::arange(8) + (step <= 10 ? 1 : 8);
    auto errors = (at::randn({8}, g) * 0.1).exp(), magnitude = at::rand({8}, g) + 1;
    if (step == 10) {
      errors[0] = 0.001;
      magnitude[0] = 50;
    }
    sieve.inspect(scripted(ids, at::full({8}, 500), errors, magnitude), {step, 0});
    const auto looks = ids_of(sieve.looks(step));
    if (!looks.empty()) {
      // Sample 0, which is in no batch, fills up, and shows what would flag anybody.
      const auto who = at::tensor(looks, at::kLong);
      const auto seen =
          at::where(who == 0, at::full({}, 1e6F), at::where(who == 1, at::full({}, looked), at::full({}, 1.5F)));
      sieve.look(scripted(who, at::full({2}, 500), at::ones({2}), seen), {step, 0});
    }
    sieve.end_step({step, 0});
  };
  const auto until = [&](int64_t from, int64_t to, float looked) {
    for (int64_t step = from; step < to; ++step) {
      step_of(with, step, looked);
      step_of(without, step, looked);
    }
  };
  const auto flagged = [](const Sieve& sieve, int64_t step) { return at::nonzero(sieve.flagged(step)).reshape({-1}); };
  const auto sample_1 = at::ones({1}, at::kLong), nobody = at::empty({0}, at::kLong);
  until(0, 10 + kFlagLag, 40);
  CHECK(at::equal(flagged(with, 10 + kFlagLag), sample_1));
  until(10 + kFlagLag, 30, 40);
  CHECK(at::equal(flagged(with, 30), sample_1));
  until(30, 31, 1.5F);
  until(31, 30 + kFlagLag, 40);
  CHECK(at::equal(flagged(with, 30 + kFlagLag), nobody));
  CHECK(at::equal(flagged(without, 30 + kFlagLag), sample_1));
  const auto state = with.state(), other = without.state();
  for (const char* name : {"scores", "scores_count", "training", "training_count"}) {
    INFO(name);
    CHECK(at::allclose(state.at(name), other.at(name), 0, 0, /*equal_nan=*/true));
  }
}

}  // namespace of_test_flags
