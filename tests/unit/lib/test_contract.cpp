// What the sieve refuses: batches that break the contract, configurations that could never act, a reference pass with
// gaps, a state that does not belong.
#include <memsieve/error.h>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_contract {

using Catch::Contains;
using memsieve::Sieve;

namespace {

const std::string kPlain =
    "filters: {prediction_error: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, drop: "
    "100}";

Sieve make(const std::string& keys, const memsieve::Setup& setup) {
  return Sieve::from_text("sieve: {" + keys + "}", "test", std::make_shared<memsieve::SoloComm>(), setup);
}

/// What the sieve says of keys, "" if nothing.
std::string refusal(const std::string& keys, const memsieve::Setup& setup) {
  try {
    make(keys, setup);
  } catch (const memsieve::ConfigError& error) {
    return error.what();
  }
  return "";
}

memsieve::Setup with_held_out(int64_t dataset, int64_t rows, int64_t pictures) {
  auto setup = toy::setup(dataset, rows);
  setup.held_out_size = pictures;
  return setup;
}

memsieve::Batch good_batch() {
  static const toy::Model model;
  const memsieve::Batch batch = toy::batch_of(model, toy::make_step(8, 50, 1, 0), 0, 8);
  return {batch.sample_id, batch.timestep, batch.prediction.detach(), batch.target, batch.null_prediction, {}};
}

/// What end_step says after a batch.
std::string complaint(const memsieve::Batch& batch) {
  auto sieve = make(kPlain, toy::setup(50, 8));
  const auto plan = sieve.inspect(batch, {});
  plan.loss(at::ones({8}));  // the loop goes on until all ranks know
  try {
    sieve.end_step({});
  } catch (const memsieve::PeerError& error) {
    CHECK(error.cause() != nullptr);
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a batch's shapes and ranges are checked, whatever their strides", "[contract]") {
  CHECK(complaint(good_batch()).empty());
  auto batch = good_batch();
  batch.timestep = batch.timestep.unsqueeze(1);
  CHECK_THAT(complaint(batch), Contains("rank 0: batch: timestep must have the shape [8]"));
  batch = good_batch();
  batch.has_caption = at::ones({8, 1}, at::kBool);
  CHECK_THAT(complaint(batch), Contains("has_caption must have the shape [8]"));
  batch = good_batch();
  batch.timestep = batch.timestep.to(at::kFloat) + 1000;
  CHECK_THAT(complaint(batch), Contains("timesteps must lie in [0, 1000)"));
  batch = good_batch();
  batch.sample_id = at::full({1}, 49, at::kLong).expand({8});
  CHECK(complaint(batch).empty());
  batch.sample_id = at::stack({batch.sample_id, at::full({8}, 1000, at::kLong)}, 1).select(1, 1);
  CHECK_THAT(complaint(batch), Contains("sample id 1000 is out of range [0, 50)"));
  batch = good_batch();
  batch.prediction = at::Tensor();
  CHECK_THAT(complaint(batch), Contains("prediction must be [B, C, ...]"));
}

TEST_CASE("errors of torch come as one line", "[contract]") {
  auto setup = toy::setup(50, 8);
  auto sieve = make(
      "filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, drop: 1}",
      setup);
  auto batch = good_batch();
  batch.null_prediction = [](const at::Tensor&) { return at::ones({2}).matmul(at::ones({3})); };
  sieve.inspect(batch, {});
  try {
    sieve.end_step({});
    FAIL("no error");
  } catch (const memsieve::PeerError& error) {
    CHECK_THAT(error.what(),
               Contains("step 0: rank 0: inconsistent tensor size") && !Contains("\n") && !Contains("frame #"));
  }
}

TEST_CASE("configurations that could never drop anything are refused", "[contract]") {
  const auto setup = with_held_out(1000, 8, 64);
  const std::string held_out = "filters: {prediction_error: {}}, held_out: {rows: 8}, ";
  CHECK(refusal(held_out + "threshold: {kind: held_out}", setup).empty());
  CHECK_THAT(refusal(held_out + "standardise: {window: 16}", setup),
             Contains("standardise.min_count: 20 can never be reached with standardise.window: 16"));
  CHECK_THAT(refusal(held_out + "evidence: {visits: 2, min_visits: 3}", setup),
             Contains("evidence.min_visits: 3 can never be reached with evidence.visits: 2"));
  CHECK_THAT(refusal(held_out + "threshold: {kind: quantile, drop: 0.9, release: 0.9, window: 10}", setup),
             Contains("can never be reached with threshold.window: 10"));
  CHECK_THAT(refusal(held_out + "action: {max_fraction: 0.1}", setup),
             Contains("action.max_fraction: lets no row of a block of 8 rows be dropped"));
  CHECK_THAT(refusal("filters: {prediction_error: {}}, standardise: {by: rms}, evidence: {kind: visit}, threshold: "
                     "{kind: fixed, drop: 1}",
                     setup),
             Contains("rms is for the magnitude alone; prediction_error is no norm"));
}

TEST_CASE("numbers that float32 does not hold are refused by their key", "[contract]") {
  const auto setup = with_held_out(1000, 8, 64);
  const auto keys = [](const std::string& clip, const std::string& drop, const std::string& release) {
    return "filters: {prediction_error: {}}, held_out: {rows: 8}, standardise: {clip: " + clip +
           "}, threshold: {kind: fixed, drop: " + drop + ", release: " + release + "}";
  };
  for (const std::string level : {"1e38", "-1e38"}) {
    auto sieve = make(keys("1e38", level, "-1e38"), setup);
    const auto batch = good_batch();
    sieve.inspect(batch, {}).loss(at::ones({8}));
    CHECK_NOTHROW(sieve.end_step({}));
  }
  CHECK_THAT(refusal(keys("1e39", "1", "0"), setup), Contains("standardise.clip: "));
  CHECK_THAT(refusal(keys("4", "1e39", "0"), setup), Contains("threshold.drop: "));
  CHECK_THAT(refusal(keys("4", "1", "-1e39"), setup), Contains("threshold.release: "));
}

TEST_CASE("a level that is no rate needs a release level of its own", "[contract]") {
  const auto setup = with_held_out(1000, 8, 64);
  for (const char* kind : {"kind: fixed, drop: 6", "kind: robust_z, drop: 3", "kind: quantile, drop: 0.99"}) {
    const std::string keys = std::string("filters: {prediction_error: {}}, held_out: {rows: 8}, threshold: {") + kind;
    CHECK_THAT(refusal(keys + "}", setup), Contains("needs threshold.release in the same unit"));
    CHECK(refusal(keys + ", release: 0.5}", setup).empty());
  }
}

TEST_CASE("too few held-out pictures for the threshold: a warning says so", "[contract]") {
  const std::string keys =
      "filters: {prediction_error: {}}, held_out: {rows: 8}, threshold: {kind: held_out, drop: 0.01, tail: ";
  CHECK(make(keys + "normal}", with_held_out(50, 32, 64)).warnings().empty());
  const auto few = make(keys + "normal}", with_held_out(50, 32, 16)).warnings();
  REQUIRE(few.size() == 1);
  CHECK_THAT(few[0], Contains("16 held-out rows (16 pictures), fewer than standardise.min_count: 20"));
  const auto conformal = make(keys + "conformal}", with_held_out(50, 32, 98)).warnings();
  REQUIRE(conformal.size() == 1);
  CHECK_THAT(conformal[0], Contains("too few for `tail: conformal`"));
  CHECK(make(keys + "conformal}", with_held_out(50, 32, 99)).warnings().empty());
}

TEST_CASE("too few held-out pictures for a rate: a warning says so", "[contract]") {
  const std::string keys =
      "filters: {start_gap: {}}, held_out: {rows: 8}, standardise: {population: held_out, clip: 8, min_count: 8}, "
      "evidence: {kind: discounted, spread: 3}, threshold: {kind: rate}";
  // 5.08 for 4 pictures, 3.51 for 7; a sample that always has the largest z-score reaches 4.58.
  const auto few = make(keys, with_held_out(50, 32, 4)).warnings();
  REQUIRE(few.size() == 1);
  CHECK_THAT(few[0], Contains("with 4 held-out pictures the level is 5.0") && Contains("reaches 4.58 at most"));
  CHECK(make(keys, with_held_out(50, 32, 7)).warnings().empty());
}

TEST_CASE("a loop that never gives the likeness that the rule asks for: a warning says so after its first step",
          "[contract]") {
  const auto warnings = [](const std::string& likeness, const std::string& pool, bool given) {
    auto setup = toy::setup(50, 8);
    setup.group_id.resize(50);
    auto sieve = make(
        "filters: {prediction_error: {}}, standardise: {population: training}, evidence: {kind: discounted, "
        "pool: " +
            pool + "}, threshold: {kind: rate}, held_out: {rows: 0}, probe: {kind: budget, likeness: " + likeness + "}",
        setup);
    CHECK(sieve.warnings().empty());
    auto batch = good_batch();
    if (given) batch.likeness = at::ones({8, 4});
    sieve.inspect(batch, {}).loss(at::ones({8}));
    sieve.end_step({});
    return sieve.warnings();
  };
  const auto lines = warnings("6", "sample", false);
  REQUIRE(lines.size() == 1);
  CHECK_THAT(lines[0], Contains("no batch had Batch::likeness") && Contains("or set probe.likeness to 0"));
  CHECK(warnings("6", "sample", true).empty());
  CHECK(warnings("6", "group", false).empty());  // groups tell which samples are copies
  CHECK(warnings("0", "sample", false).empty());
}

TEST_CASE("a reference pass whose draws all lie below a filter's timesteps is refused", "[contract]") {
  const auto setup = with_held_out(1000, 8, 64);
  const auto with = [&](const std::string& draws) {
    return refusal(
        "filters: {magnitude: {timestep_min: 600}, prediction_error: {}}, held_out: {rows: 8}, reference: "
        "{kind: start_model, draws: " +
            draws + "}",
        setup);
  };
  CHECK_THAT(with("1"),
             Contains("test:1: sieve.reference.draws: 1 draws reach timestep 500 at most, but filters.magnitude "
                      "scores none below timestep_min: 600; set draws to at least 2"));
  CHECK(with("2").empty());  // timesteps 250 and 750
  CHECK(with("5").empty());
}

namespace {

struct Picky final : memsieve::Filter {
  explicit Picky(bool fails) {
    if (fails) throw std::runtime_error("no such file");
  }
  memsieve::Needs needs() const override { return {}; }
  at::Tensor score(const memsieve::SignalView& view) const override { return view.prediction_error; }
};

}  // namespace

TEST_CASE("a filter that cannot be built on one rank does not leave the others waiting", "[contract]") {
  const auto errors = toy::on_ranks(3, [&](auto comm) {
    auto setup = toy::setup(50, 24, 3);
    const bool guilty = comm->rank() == 1;
    setup.filters.add(
        {"picky", "", {}, [guilty](const memsieve::Settings&) { return std::make_unique<Picky>(guilty); }});
    Sieve::from_text(
        "sieve: {filters: {picky: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, "
        "drop: 1}}",
        "test", comm, setup);
  });
  for (const auto& error : errors) CHECK_THAT(error, Contains("no such file"));
}

TEST_CASE("PeerError carries what was thrown on this rank, and nothing where another is guilty", "[contract]") {
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text("sieve: {" + kPlain + "}", "test", comm, toy::setup(50, 16, 2));
    auto batch = good_batch();
    if (comm->rank() == 1) batch.target = at::Tensor();
    sieve.inspect(batch, {});
    try {
      sieve.end_step({});
    } catch (const memsieve::PeerError& error) {
      if (comm->rank() == 0 && !error.cause()) throw std::runtime_error("right");
      try {
        std::rethrow_exception(error.cause());
      } catch (const memsieve::DataError&) {
        throw std::runtime_error("right");
      }
    }
  });
  for (const auto& error : errors) CHECK(error == "right");
}

TEST_CASE("channels have the registry's order, not the file's", "[contract]") {
  const std::string rest = ", standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, drop: 1}";
  const auto one = make("filters: {magnitude: {}, prediction_error: {}}" + rest, toy::setup(50, 8));
  const auto other = make("filters: {prediction_error: {}, magnitude: {}}" + rest, toy::setup(50, 8));
  CHECK(one.channels() == other.channels());
}

TEST_CASE("a state of other filters, or one that comes too late, is refused", "[contract]") {
  const std::string rest = ", standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, drop: 100}";
  auto sieve = make("filters: {prediction_error: {}}" + rest, toy::setup(50, 8));
  const auto state = sieve.state();
  auto other = make("filters: {magnitude: {}}" + rest, toy::setup(50, 8));
  CHECK_THROWS_WITH(other.restore(state),
                    Contains("belongs to the filters prediction_error, but this configuration has magnitude"));
  sieve.inspect(good_batch(), {});
  sieve.end_step({});
  CHECK_THROWS_WITH(sieve.restore(state), Contains("restore() comes before the first step"));
}

namespace {

const std::string kReference =
    "filters: {prediction_error: {}}, held_out: {rows: 8}, reference: {kind: start_model, draws: 1}, threshold: {kind: "
    "held_out}";

/// Samples or held-out pictures [0, count) at timestep 500, with errors of their own.
memsieve::Batch pictures(int64_t count, double error = 1) {
  memsieve::Batch batch;
  batch.sample_id = at::arange(count);
  batch.timestep = at::full({count}, 500, at::kLong);
  batch.prediction = at::zeros({count, 4});
  batch.target = at::full({count, 4}, error);
  return batch;
}

}  // namespace

TEST_CASE("a reference pass that leaves pictures out is refused, naming one", "[contract]") {
  const auto setup = with_held_out(8, 8, 4);
  auto nothing = make(kReference, setup);
  CHECK_THROWS_WITH(nothing.finish_reference(), Contains("reference pass: no draws"));
  auto half = make(kReference, setup);
  CHECK(half.reference(pictures(4), false));
  CHECK_THROWS_WITH(half.finish_reference(), Contains("8 of 12 pictures were not drawn, the first of them sample 4"));
  auto training_alone = make(kReference, setup);
  CHECK(training_alone.reference(pictures(8), false));
  CHECK_THROWS_WITH(training_alone.finish_reference(),
                    Contains("4 of 12 pictures were not drawn") && Contains("held-out picture 0"));
  auto whole = make(kReference, setup);
  CHECK(whole.reference(pictures(8), false));
  CHECK(whole.reference(pictures(4), true));
  CHECK_NOTHROW(whole.finish_reference());
  CHECK(whole.has_reference());
}

TEST_CASE("a NaN of the starting model ends the reference pass at once with the sample's id, or does not count",
          "[contract]") {
  for (const bool skip : {false, true}) {
    auto setup = with_held_out(8, 8, 4);
    setup.overrides = {std::string("sieve.on_nonfinite=") + (skip ? "skip" : "fail")};
    auto sieve = make(kReference, setup);
    auto batch = pictures(8);
    batch.target[5].fill_(std::nan(""));
    CHECK(sieve.reference(batch, false) == skip);
    CHECK(sieve.reference(pictures(4), true));
    if (skip) {
      CHECK_NOTHROW(sieve.finish_reference());
    } else {
      CHECK_THROWS_WITH(sieve.finish_reference(), Contains("rank 0: sample 5: NaN or Inf"));
    }
  }
}

TEST_CASE("without a reference the pass costs nothing and says nothing", "[contract]") {
  auto sieve = make(kPlain, toy::setup(8, 8));
  CHECK(sieve.reference({}, false));
  CHECK_NOTHROW(sieve.finish_reference());
}

TEST_CASE("held-out rows in a step that observes none are an error", "[contract]") {
  auto sieve = make("filters: {prediction_error: {}}, held_out: {rows: 8, every: 2}, threshold: {kind: held_out}",
                    with_held_out(8, 8, 4));
  sieve.observe(pictures(4), {1, 0});
  CHECK_THROWS_WITH(sieve.end_step({1, 0}), Contains("held-out: batch: step 1 observes no held-out rows"));
}

TEST_CASE("a filter's name and options must leave room for the library's own", "[contract]") {
  memsieve::FilterRegistry registry;
  const auto make_picky = [](const memsieve::Settings&) { return std::make_unique<Picky>(false); };
  memsieve::Schema weighted;
  weighted.real("weight", 1, 0, 2, "");
  CHECK_THROWS_WITH(registry.add({"picky", "", weighted, make_picky}), Contains("has the option `weight` already"));
  CHECK_THROWS_WITH(registry.add({"a.b", "", {}, make_picky}), Contains("must not hold a dot"));
  CHECK(registry.find("picky") == nullptr);
}

TEST_CASE("more samples than ids, or none, are refused, and ranks must agree on them", "[contract]") {
  auto setup = toy::setup(50, 16, 2);
  for (const int64_t samples : {0, 51}) {
    setup.samples = samples;
    CHECK_THAT(refusal(kPlain, setup),
               Contains("Setup::samples: is " + std::to_string(samples) + ", must be 1 to dataset_size = 50"));
  }
  for (const int64_t other : {49, 50}) {
    const auto errors = toy::on_ranks(2, [&](auto comm) {
      auto own = toy::setup(50, 16, 2);
      if (comm->rank() == 1) own.samples = other;
      Sieve::from_text("sieve: {" + kPlain + "}", "test", comm, own);
    });
    for (const auto& error : errors) {
      if (other == 50)
        CHECK(error == "");
      else
        CHECK_THAT(error, Contains("rank 1 differs from rank 0 in the loop's setup"));
    }
  }
}

}  // namespace of_test_contract
