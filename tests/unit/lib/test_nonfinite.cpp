// Law 9: a NaN or Inf never reaches the parameters silently: all ranks fail, or skip the update and count it.
#include <limits>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_nonfinite {

using Catch::Contains;
using memsieve::Sieve;
using toy::published;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

memsieve::Setup setup_of(bool skip, int64_t rows, int64_t ranks) {
  auto setup = toy::setup(50, rows, ranks);
  if (skip) setup.overrides = {"sieve.on_nonfinite=skip"};
  return setup;
}

void require_skipped_and_counted(Sieve& sieve, const memsieve::StepEnd& end, int64_t rows) {
  const auto report = sieve.take_reports().at(0);
  if (end.skip.item<double>() != 1 || end.nonfinite.item<double>() != 1 || !report.skipped || report.nonfinite != rows)
    throw std::runtime_error("not skipped and counted");
}

}  // namespace

TEST_CASE("law 9: a NaN row fails all ranks with the sample's id, or is skipped and counted", "[law]") {
  const bool skip = GENERATE(false, true);
  const bool in_loss = GENERATE(false, true);
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto setup = toy::setup(50, 16, 2);
    if (skip) setup.overrides = {"sieve.on_nonfinite=skip"};
    auto sieve = Sieve::from_text(published(1e9), "test", comm, setup);
    auto step = toy::make_step(16, 50, 1, 0);
    step.ids[11] = 33;
    if (!in_loss) step.x[11].fill_(std::numeric_limits<double>::quiet_NaN());
    toy::Model model;
    const auto batch = toy::batch_of(model, step, comm->rank() * 8, comm->rank() * 8 + 8);
    const auto plan = sieve.inspect(batch, {});
    auto loss = toy::per_sample_loss(batch);
    if (in_loss && comm->rank() == 1) loss = loss * at::where(at::arange(8) == 3, std::nan(""), 1.0);
    plan.loss(loss);
    const auto end = sieve.end_step({});
    const auto report = sieve.take_reports().at(0);
    if (end.skip.template item<double>() != 1 || !report.skipped || report.nonfinite != 1)
      throw std::runtime_error("not counted");
  });
  for (const auto& error : errors) {
    if (skip) {
      CHECK(error == "");
    } else {
      CHECK_THAT(error, Catch::Contains("sample 33") && Catch::Contains("NaN or Inf"));
    }
  }
}

TEST_CASE("law 9: a NaN of the null prediction, or in the loss of a row that is dropped", "[law]") {
  const bool skip = GENERATE(false, true), dropped = GENERATE(false, true);
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(dropped ? -1 : 1e9), "test", comm, setup_of(skip, 16, 2));
    auto step = toy::make_step(16, 50, 1, 0);
    step.ids[11] = 33;
    toy::Model model;
    auto batch = toy::batch_of(model, step, comm->rank() * 8, comm->rank() * 8 + 8);
    if (!dropped && comm->rank() == 1) {
      batch.null_prediction = [inner = batch.null_prediction](const at::Tensor& rows) {
        return inner(rows).masked_fill((rows == 3).unsqueeze(1), kNaN);
      };
    }
    const auto plan = sieve.inspect(batch, {});
    if (dropped && plan.weight().sum().template item<double>() != 0) throw std::runtime_error("not dropped");
    auto loss = toy::per_sample_loss(batch);
    if (dropped && comm->rank() == 1) loss = loss * at::where(at::arange(8) == 3, kNaN, 1.0);
    plan.loss(loss);
    const auto end = sieve.end_step({});
    require_skipped_and_counted(sieve, end, 1);
  });
  for (const auto& error : errors) {
    if (skip) {
      CHECK(error == "");
    } else {
      CHECK_THAT(error, Contains("sample 33: NaN or Inf"));
    }
  }
}

TEST_CASE("law 9: a NaN that only the gradient shows, on any rank", "[law]") {
  const bool skip = GENERATE(false, true);
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(1e9), "test", comm, setup_of(skip, 16, 2));
    const toy::Model model;
    const auto batch = toy::batch_of(model, toy::make_step(16, 50, 1, 0), comm->rank() * 8, comm->rank() * 8 + 8);
    const auto step = [&](int64_t number, at::TensorList gradients) {
      sieve.inspect(batch, {number, 0}).loss(toy::per_sample_loss(batch));
      return sieve.end_step({number, 0}, gradients);
    };
    // Large, though finite, or not there.
    const std::vector<at::Tensor> good{at::full({3}, 1e30F), at::Tensor(), at::zeros({0}),
                                       at::full({2}, -1e300, at::kDouble)};
    if (step(0, good).skip.template item<double>() != 0) throw std::runtime_error("skipped without reason");
    sieve.take_reports();
    auto bad = good;
    if (comm->rank() == 1) bad.push_back(at::tensor({1.F, std::numeric_limits<float>::infinity()}));
    const auto end = step(1, bad);
    require_skipped_and_counted(sieve, end, 0);
    if (step(2, good).skip.template item<double>() != 0) throw std::runtime_error("the next step was skipped, too");
  });
  for (const auto& error : errors) {
    if (skip) {
      CHECK(error == "");
    } else {
      CHECK_THAT(error, Contains("step 1: NaN or Inf in the gradient, though every loss is finite"));
    }
  }
}

TEST_CASE("law 9: of several losses that a loop asks of one plan each counts", "[law]") {
  const bool first = GENERATE(false, true);
  auto sieve = Sieve::from_text(published(1e9), "test", std::make_shared<memsieve::SoloComm>(), setup_of(true, 8, 1));
  const toy::Model model;
  const auto batch = toy::batch_of(model, toy::make_step(8, 50, 1, 0), 0, 8);
  const auto plan = sieve.inspect(batch, {});
  const auto good = toy::per_sample_loss(batch), bad = good * at::where(at::arange(8) == 3, kNaN, 1.0);
  plan.loss(first ? bad : good);
  plan.loss(first ? good : bad);
  require_skipped_and_counted(sieve, sieve.end_step({}), 1);
}

TEST_CASE("law 9: a loop that goes on after an error is told in each step that nothing is updated any more", "[law]") {
  const bool nonfinite = GENERATE(false, true);
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(1e9), "test", comm, setup_of(false, 16, 2));
    const toy::Model model;
    const auto end = [&](int64_t number, bool bad) -> std::string {
      auto batch = toy::batch_of(model, toy::make_step(16, 50, 1, 0), comm->rank() * 8, comm->rank() * 8 + 8);
      auto loss = toy::per_sample_loss(batch);
      if (bad && nonfinite) loss = loss * kNaN;
      if (bad && !nonfinite && comm->rank() == 1) sieve.fail(std::make_exception_ptr(std::runtime_error("no luck")));
      sieve.inspect(batch, {number, 0}).loss(loss);
      try {
        sieve.end_step({number, 0});
      } catch (const memsieve::PeerError& error) {
        return error.what();
      } catch (const memsieve::NonFiniteError& error) {
        return error.what();
      } catch (const memsieve::Error& error) {
        return std::string("other: ") + error.what();
      }
      return "";
    };
    if (!end(0, false).empty()) throw std::runtime_error("an error too soon");
    const std::string what = end(1, true);
    const std::string expected = nonfinite ? "step 1: sample " : "step 1: rank 1: no luck";
    if (what.find(expected) != 0) throw std::runtime_error("first: " + what);
    sieve.take_reports();
    for (int64_t number = 2; number < 5; ++number) {
      const std::string later = end(number, number == 3);
      if (later != "other: step " + std::to_string(number) + ": no update, since this sieve has ended (" + what +
                       "); make a new one and restore the last checkpoint")
        throw std::runtime_error("later: " + later);
      if (!sieve.take_reports().at(0).skipped) throw std::runtime_error("not reported as skipped");
    }
  });
  for (const auto& error : errors) CHECK(error == "");
}

namespace {

const std::string kHeldOut = R"(
sieve:
  filters: {prediction_error: {}}
  standardise: {by: timestep, population: held_out, bins: 2, window: 16, min_count: 2}
  evidence: {kind: ledger, visits: 4}
  threshold: {kind: held_out, drop: 0.2, release: 0.4}
  held_out: {rows: 8}
)";

/// Three steps in which picture 2's held-out rows are spoilt, or left out; the state after them.
std::map<std::string, at::Tensor> state_with(bool spoilt, std::vector<memsieve::StepReport>& reports,
                                             at::Tensor& skipped) {
  auto setup = setup_of(true, 8, 1);
  setup.held_out_size = 4;
  auto sieve = Sieve::from_text(kHeldOut, "test", std::make_shared<memsieve::SoloComm>(), setup);
  const toy::Model model;
  skipped = at::zeros({});
  for (int64_t s = 0; s < 3; ++s) {
    const auto batch = toy::batch_of(model, toy::make_step(8, 50, 1, s), 0, 8);
    sieve.inspect(batch, {s, 0}).loss(toy::per_sample_loss(batch));
    const auto seen = toy::make_step(8, 50, 2, s);
    std::vector<int64_t> kept, ids;
    for (const auto& visit : sieve.held_out_visits(s)) {
      if (visit.picture == 2 && !spoilt) continue;
      kept.push_back(visit.place);
      ids.push_back(visit.id);
      if (visit.picture == 2) seen.x[visit.place].fill_(kNaN);
    }
    const auto rows = at::tensor(kept, at::kLong);
    const toy::Step chosen{at::tensor(ids, at::kLong), seen.t.index_select(0, rows), seen.x.index_select(0, rows),
                           seen.caption.index_select(0, rows), seen.target.index_select(0, rows)};
    sieve.observe(toy::batch_of(model, chosen, 0, rows.size(0)), {s, 0});
    skipped += sieve.end_step({s, 0}).skip;
  }
  reports = sieve.take_reports();
  return sieve.state();
}

}  // namespace

TEST_CASE("law 9: with `skip`, a bad held-out picture is counted and left out, and the updates go on", "[law]") {
  std::vector<memsieve::StepReport> reports, clean;
  at::Tensor skipped, none;
  const auto with = state_with(true, reports, skipped), without = state_with(false, clean, none);
  CHECK(skipped.item<float>() == 0);
  int64_t counted = 0;
  for (const auto& report : reports) {
    counted += report.nonfinite;
    CHECK_FALSE(report.skipped);
  }
  CHECK(counted == 6);  // two of the eight rows of each step show picture 2
  for (const char* name : {"scores", "scores_count", "windows", "windows_count"}) {
    INFO(name);  // but for the last place, which takes what is not kept
    const auto kept = [&](const auto& state) { return state.at(name).slice(0, 0, -1).nan_to_num(-7); };
    CHECK(at::equal(kept(with), kept(without)));
  }
}

TEST_CASE("law 9: with `fail`, a bad held-out picture ends the run by its number", "[law]") {
  auto setup = setup_of(false, 8, 1);
  setup.held_out_size = 4;
  auto sieve = Sieve::from_text(kHeldOut, "test", std::make_shared<memsieve::SoloComm>(), setup);
  const toy::Model model;
  auto step = toy::make_step(8, 4, 1, 0);
  step.ids.copy_(at::arange(8).remainder(4));
  step.x[6].fill_(kNaN);
  sieve.observe(toy::batch_of(model, step, 0, 8), {});
  CHECK_THROWS_WITH(sieve.end_step({}), Contains("held-out picture 2: NaN or Inf"));
}

}  // namespace of_test_nonfinite
