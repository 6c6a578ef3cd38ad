// The sieve as a whole on scripted signals: what it drops, when, and what a resumed run sees.
#include <support/files.h>
#include <support/toy.h>

#include <ATen/autocast_mode.h>
#include <unistd.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own
#include <filesystem>

namespace of_test_sieve {

using memsieve::Sieve;
using toy::scripted;

namespace {

Sieve make(const std::string& yaml, memsieve::Setup setup) {
  return Sieve::from_text("sieve:\n" + yaml, "test", std::make_shared<memsieve::SoloComm>(), setup);
}

const std::string kHeldOut = R"(
  filters: {prediction_error: {}}
  standardise: {by: timestep, population: held_out, bins: 2, window: 64, min_count: 20}
  evidence: {kind: ledger, visits: 4}
  threshold: {kind: held_out, drop: 0.01, release: 0.1}
  held_out: {rows: 32}
)";

memsieve::Setup setup_for(int64_t dataset, int64_t rows, int64_t held_out) {
  auto setup = toy::setup(dataset, rows);
  setup.held_out_size = held_out;
  return setup;
}

/// Log-normal errors around 1 with `easy` of them divided by e^offset; keyed by the step.
at::Tensor errors_at(int64_t step, int64_t rows, const at::Tensor& offset) {
  const auto g = at::detail::createCPUGenerator(99 + step);
  return (at::randn({rows}, g) * 0.3 - offset).exp();
}

at::Tensor timesteps(int64_t step, int64_t rows) {
  const auto g = at::detail::createCPUGenerator(7777 + step);
  return at::randint(1000, {rows}, g, at::kLong);
}

at::Tensor no_easiness(const at::Tensor& picture) {
  return at::zeros_like(picture);
}

/// Shows the sieve this step's held-out rows; `easiness` maps picture numbers to what lowers their errors.
void observe_held_out(Sieve& sieve, int64_t step,
                      const std::function<at::Tensor(const at::Tensor&)>& easiness = no_easiness) {
  std::vector<int64_t> ids, pictures;
  std::vector<float> t;
  for (const auto& visit : sieve.held_out_visits(step)) {
    ids.push_back(visit.id);
    pictures.push_back(visit.picture);
    t.push_back(static_cast<float>(visit.timestep_fraction * 1000));
  }
  if (ids.empty()) return;
  const auto count = static_cast<int64_t>(ids.size());
  const auto offset = easiness(at::tensor(pictures, at::kLong)).to(at::kFloat);
  sieve.observe(
      scripted(at::tensor(ids, at::kLong), at::tensor(t), errors_at(step + 100000, count, offset), at::ones({count})),
      {step, 0});
}

/// Pictures differ in easiness, training samples and held-out pictures alike.
at::Tensor every_fourth_is_easy(const at::Tensor& picture) {
  return (picture.remainder(4) == 0).to(at::kFloat) * 0.6;
}

/// The reference pass over 16 samples and 32 held-out pictures.
void show_start_model(Sieve& sieve, int64_t draws, const std::function<at::Tensor(const at::Tensor&)>& easiness) {
  for (int64_t draw = 0; draw < draws; ++draw) {
    for (const auto& [rows, held_out] : {std::pair<int64_t, bool>{16, false}, {32, true}}) {
      const auto t = at::full({rows}, (static_cast<double>(draw) + 0.5) / static_cast<double>(draws) * 1000);
      const auto ids = at::arange(rows), errors = errors_at((held_out ? 6000 : 5000) + draw, rows, easiness(ids));
      sieve.reference(scripted(ids, t, errors, at::ones({rows})), held_out);
    }
  }
  sieve.finish_reference();
}

/// One step: all 16 samples are visited; samples below `memorised` have an error lower by e^2 from step 10 on.
at::Tensor play(Sieve& sieve, int64_t step, int64_t memorised) {
  const auto ids = at::arange(16);
  const auto offset = (ids < memorised).to(at::kFloat) * (step >= 10 ? 2.0 : 0.0);
  const auto plan =
      sieve.inspect(scripted(ids, timesteps(step, 16), errors_at(step, 16, offset), at::ones({16})), {step, 0});
  observe_held_out(sieve, step);
  sieve.end_step({step, 0});
  return plan.weight();
}

}  // namespace

TEST_CASE("held-out rule: memorised samples are found and stay found, others are left alone", "[sieve]") {
  auto sieve = make(kHeldOut, setup_for(16, 16, 32));
  double dropped_memorised = 0, dropped_others = 0;
  for (int64_t step = 0; step < 60; ++step) {
    const auto weight = play(sieve, step, 4);
    if (step < 20) continue;
    dropped_memorised += (1 - weight.slice(0, 0, 4)).sum().item<double>() / (40 * 4);
    dropped_others += (1 - weight.slice(0, 4)).sum().item<double>() / (40 * 12);
  }
  CHECK(dropped_memorised > 0.97);
  CHECK(dropped_others < 0.06);
}

TEST_CASE("held-out rows every third step: fewer rows, the same finds", "[sieve]") {
  auto setup = setup_for(16, 16, 32);
  setup.overrides = {"sieve.held_out.every=3"};
  auto sieve = make(kHeldOut, setup);
  double dropped_memorised = 0, dropped_others = 0;
  for (int64_t step = 0; step < 60; ++step) {
    CHECK(sieve.held_out_visits(step).size() == (step % 3 == 0 ? 32 : 0));
    const auto weight = play(sieve, step, 4);
    if (step < 20) continue;
    dropped_memorised += (1 - weight.slice(0, 0, 4)).sum().item<double>() / (40 * 4);
    dropped_others += (1 - weight.slice(0, 4)).sum().item<double>() / (40 * 12);
  }
  CHECK(dropped_memorised > 0.95);
  CHECK(dropped_others < 0.08);
}

TEST_CASE("a loop may end the reference pass that its configuration does not ask for", "[sieve]") {
  auto sieve = make(kHeldOut, setup_for(16, 16, 32));
  CHECK(sieve.reference_draws() == 0);
  sieve.finish_reference();
  CHECK_NOTHROW(play(sieve, 0, 4));
}

namespace {

struct Halved : memsieve::Filter {
  memsieve::Needs needs() const override { return {.signals = {"magnitude"}}; }
  at::Tensor score(const memsieve::SignalView& view) const override { return view.magnitude / 2; }
};

}  // namespace

TEST_CASE("a filter of one's own that needs the magnitude goes with standardise.by: rms", "[sieve]") {
  auto setup = setup_for(4, 4, 0);
  setup.filters.add(
      {"halved", "half the magnitude", {}, [](const memsieve::Settings&) { return std::make_unique<Halved>(); }});
  auto sieve = make(
      "  filters: {halved: {}}\n  standardise: {by: rms}\n  evidence: {kind: visit}\n"
      "  threshold: {kind: fixed, drop: 1.0}\n",
      setup);
  // 4 elements: score = magnitude / 2 / sqrt(4).
  const auto plan =
      sieve.inspect(scripted(at::arange(4), at::full({4}, 500), at::ones({4}), at::tensor({1.F, 3.9F, 4.1F, 9.F})), {});
  CHECK(at::equal(plan.weight(), at::tensor({1.F, 1.F, 0.F, 0.F})));
  sieve.end_step({});
}

TEST_CASE("warm-up measures, judges and drops nothing", "[sieve]") {
  auto setup = setup_for(16, 16, 32);
  auto sieve = make(kHeldOut + "  action: {warmup_steps: 40}\n", setup);
  for (int64_t step = 0; step < 40; ++step) CHECK(play(sieve, step, 4).min().item<float>() == 1.F);
  const auto flagged = sieve.state().at("flagged").slice(0, 0, 16);  // what it would have dropped
  CHECK(flagged.slice(0, 0, 4).all().item<bool>());
  CHECK(flagged.slice(0, 4).sum().item<int64_t>() <= 2);
  CHECK(play(sieve, 40, 4).slice(0, 0, 4).max().item<float>() == 0.F);  // the past was measured all the same
}

TEST_CASE("a restored sieve decides as the uninterrupted one, and the ledger continues", "[sieve]") {
  const memsieve::testing::TemporaryFolder folder;
  auto setup = setup_for(16, 16, 32);
  setup.ledger_path = folder.file("ledger.h5");
  std::vector<at::Tensor> weights;
  std::map<std::string, at::Tensor> state;
  {
    auto sieve = make(kHeldOut, setup);
    for (int64_t step = 0; step < 40; ++step) {
      if (step == 25) {
        sieve.flush();
        state = sieve.state();
      }
      weights.push_back(play(sieve, step, 4));
    }
    sieve.flush();
  }
  auto resumed = make(kHeldOut, setup);
  resumed.restore(state);
  for (int64_t step = 25; step < 40; ++step) CHECK(at::equal(play(resumed, step, 4), weights[step]));
  resumed.flush();
  CHECK(resumed.state().at("ledger_rows").item<int64_t>() == 40 * (16 + 32));
  state.erase("windows");
  auto torn = make(kHeldOut, setup);
  CHECK_THROWS_WITH(torn.restore(state), Catch::Contains("'windows' is missing"));
}

TEST_CASE("samples of a group pool their evidence", "[sieve]") {
  // Each step shows one of four copies; a single copy has too few visits for a verdict, the group has enough.
  const auto early_drops = [](bool pooled) {
    auto setup = setup_for(16, 4, 32);
    for (int64_t i = 0; i < 16; ++i) setup.group_id.push_back(i < 4 ? 0 : i);
    setup.overrides = {std::string("sieve.evidence.pool=") + (pooled ? "group" : "sample"),
                       "sieve.evidence.min_visits=4"};
    auto sieve = make(kHeldOut, setup);
    int64_t drops = 0;
    for (int64_t step = 0; step < 52; ++step) {
      const auto ids = at::tensor({step % 4, 4 + step % 4, 8 + step % 4, 12 + step % 4}, at::kLong);
      const auto offset = (ids < 4).to(at::kFloat) * (step >= 40 ? 0.6 : 0.0);
      const auto plan =
          sieve.inspect(scripted(ids, timesteps(step, 4), errors_at(step, 4, offset), at::ones({4})), {step, 0});
      observe_held_out(sieve, step);
      sieve.end_step({step, 0});
      if (step >= 40) drops += plan.weight()[0].item<float>() == 0;
    }
    return drops;
  };
  CHECK(early_drops(true) >= 8);  // of the first 12 visits after memorisation
  CHECK(early_drops(true) >= early_drops(false) + 2);
}

TEST_CASE("start-model reference: a picture that was always easy is not taken for a memorised one", "[sieve]") {
  const auto drops = [](bool reference) {
    auto setup = setup_for(16, 16, 32);
    setup.overrides = {std::string("sieve.reference.kind=") + (reference ? "start_model" : "none"),
                       "sieve.reference.draws=16"};
    auto sieve = make(kHeldOut, setup);
    const auto easiness = every_fourth_is_easy;
    if (reference) show_start_model(sieve, 16, easiness);
    double dropped = 0, memorised = 0;
    for (int64_t step = 0; step < 80; ++step) {
      const auto ids = at::arange(16);
      auto offset = easiness(ids);
      if (step >= 20) offset[5] = 0.6;  // one sample becomes memorised
      const auto plan =
          sieve.inspect(scripted(ids, timesteps(step, 16), errors_at(step, 16, offset), at::ones({16})), {step, 0});
      observe_held_out(sieve, step, easiness);
      sieve.end_step({step, 0});
      if (step < 40) continue;
      memorised += 1 - plan.weight()[5].item<double>();
      for (int64_t i = 0; i < 16; i += 4) dropped += 1 - plan.weight()[i].item<double>();
    }
    return std::make_pair(dropped / 160, memorised / 40);
  };
  const auto [easy_with, found_with] = drops(true);
  const auto [easy_without, found_without] = drops(false);
  // The memorised sample has become as easy as the easy pictures always were: only the correction tells them apart.
  CHECK(easy_with < 0.15);
  CHECK(found_with > 0.9);
  CHECK(found_without - easy_without < 0.5);
}

TEST_CASE("a loop that runs under autocast is judged as one that does not", "[sieve]") {
  const auto state_after = [](bool autocast) {
    auto setup = setup_for(16, 16, 32);
    setup.overrides = {"sieve.reference.kind=start_model", "sieve.reference.draws=8"};
    auto sieve = make(kHeldOut, setup);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, autocast);
    show_start_model(sieve, 8, every_fourth_is_easy);
    for (int64_t step = 0; step < 30; ++step) play(sieve, step, 4);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    return sieve.state();
  };
  const auto with = state_after(true), without = state_after(false);
  CHECK(without.at("coefficients").abs().sum().item<float>() > 0);
  for (const auto& [name, tensor] : without) {
    INFO(name);
    CHECK(at::allclose(with.at(name), tensor, 0, 0, /*equal_nan=*/true));
  }
}

TEST_CASE("the probe budget goes to suspicious rows", "[sieve]") {
  auto setup = toy::setup(8, 8);
  auto sieve = make(R"(
  filters: {magnitude: {}, prediction_error: {}}
  standardise: {by: none}
  evidence: {kind: visit}
  threshold: {kind: fixed, drop: 1000}
  probe: {kind: budget, fraction: 0.25}
)",
                    setup);
  at::Tensor probed;
  auto batch = scripted(at::arange(8), at::full({8}, 500), at::tensor({1.F, 1.F, 1e-3F, 1.F, 1.F, 1e-4F, 1.F, 1.F}),
                        at::ones({8}));
  const auto inner = batch.null_prediction;
  batch.null_prediction = [&](const at::Tensor& rows) {
    probed = rows;
    return inner(rows);
  };
  sieve.inspect(batch, {});
  CHECK(at::equal(std::get<0>(at::sort(probed)), at::tensor({2L, 5L}, at::kLong)));
}

TEST_CASE("without held-out pictures: training rows set z-scores and levels", "[sieve]") {
  const std::string kind =
      GENERATE("{kind: robust_z, drop: 3, release: 2}", "{kind: quantile, drop: 0.8, release: 0.7}");
  auto sieve = make(R"(
  filters: {prediction_error: {}}
  standardise: {by: timestep, population: training, bins: 2, window: 64, min_count: 16}
  evidence: {kind: ledger, visits: 4}
  threshold: )" + kind + "\n",
                    setup_for(16, 16, 0));
  double memorised = 0, others = 0;
  for (int64_t step = 0; step < 60; ++step) {
    const auto weight = play(sieve, step, 2);
    if (step < 30) continue;
    memorised += (1 - weight.slice(0, 0, 2)).sum().item<double>() / (30 * 2);
    others += (1 - weight.slice(0, 2)).sum().item<double>() / (30 * 14);
  }
  CHECK(memorised > 0.9);
  CHECK(others < 0.25);
}

TEST_CASE("down-weighting takes less from a memorised sample than dropping, and more than nothing", "[sieve]") {
  auto sieve = make(kHeldOut + "  action: {kind: downweight, power: 1, floor: 0.05}\n", setup_for(16, 16, 32));
  at::Tensor last;
  for (int64_t step = 0; step < 40; ++step) last = play(sieve, step, 4);
  CHECK(last.slice(0, 0, 4).max().item<float>() < 0.9F);
  CHECK(last.slice(0, 0, 4).min().item<float>() >= 0.05F);
}

TEST_CASE("a ledger that is behind the checkpoint continues, is told of, and later checkpoints count on", "[sieve]") {
  const memsieve::testing::TemporaryFolder folder;
  auto setup = setup_for(16, 16, 32);
  setup.ledger_path = folder.file("ledger.h5");
  std::map<std::string, at::Tensor> state;
  const auto go_on = [&](int64_t from, int64_t to, const std::string& told) {
    auto sieve = make(kHeldOut, setup);
    if (from > 0) sieve.restore(state);
    const auto warnings = sieve.warnings();
    CHECK(warnings.size() == (told.empty() ? 0 : 1));
    if (!told.empty() && !warnings.empty()) CHECK_THAT(warnings[0], Catch::Contains(told));
    for (int64_t step = from; step < to; ++step) play(sieve, step, 4);
    sieve.flush();
    state = sieve.state();
    CHECK(state.at("ledger_rows").item<int64_t>() == to * (16 + 32));
  };
  go_on(0, 4, "");
  std::filesystem::copy_file(folder.file("ledger.h5"), folder.file("early.h5"));
  go_on(4, 6, "");
  std::filesystem::rename(folder.file("early.h5"), folder.file("ledger.h5"));
  go_on(6, 7, "holds 192 rows, but the checkpoint counts on 288");
  go_on(7, 8, "");
  std::filesystem::remove(folder.file("ledger.h5"));
  go_on(8, 9, "is missing");
  go_on(9, 10, "");
}

TEST_CASE("a loop whose clock goes in strides has its ledger written all the same", "[sieve]") {
  const memsieve::testing::TemporaryFolder folder;
  auto setup = setup_for(16, 16, 32);
  setup.ledger_path = folder.file("ledger.h5");
  setup.overrides = {"sieve.ledger.flush_every=4"};
  {
    auto sieve = make(kHeldOut, setup);
    play(sieve, 0, 4);
    const auto empty = std::filesystem::file_size(setup.ledger_path);
    for (int64_t step = 4; step < 16; step += 4) play(sieve, step, 4);
    auto written = empty;  // by a thread of its own
    for (int i = 0; i < 200 && written == empty; ++i) {
      usleep(20000);
      written = std::filesystem::file_size(setup.ledger_path);
    }
    CHECK(written > empty);
  }
}

TEST_CASE("a magnitude of exactly 0 is none on the log scale: it must not count as evidence", "[sieve]") {
  const std::string scale = GENERATE("log", "linear");
  auto sieve =
      make("  filters: {magnitude: {scale: " + scale +
               "}}\n  standardise: {by: none}\n  evidence: {kind: visit}\n  threshold: {kind: fixed, drop: 5}\n",
           setup_for(4, 4, 0));
  const auto magnitude = at::tensor({0.F, 2.F, 0.F, 8.F});
  sieve.inspect(scripted(at::arange(4), at::full({4}, 500), at::ones({4}), magnitude), {});
  sieve.end_step({});
  const auto report = sieve.take_reports().at(0);
  REQUIRE(report.raw.size() == 1);
  if (scale == "log") {
    REQUIRE(report.raw[0].size() == 2);
    CHECK(report.raw[0][0] == Approx(std::log(2.)));
  } else {
    REQUIRE(report.raw[0].size() == 4);
    CHECK(report.raw[0][0] == 0.F);
  }
}

}  // namespace of_test_sieve
