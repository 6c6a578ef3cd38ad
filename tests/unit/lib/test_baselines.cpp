// The rules that memsieve is compared with, against what their sources do, written down here row by row.
#include <ATen/ATen.h>
#include <memsieve/error.h>

#include <cmath>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_baselines {

using Catch::Contains;
using namespace memsieve;

namespace {

Sieve from_config(const std::string& name, const std::shared_ptr<Communicator>& communicator, Setup setup,
                  std::vector<std::string> overrides = {}) {
  setup.overrides = std::move(overrides);
  return Sieve::from_yaml(MEMSIEVE_SOURCE_DIR "/configs/" + name + ".yaml", communicator, setup);
}

/// IET-AGC's rule: a row is trained on if its loss times mem_ratio is at least its timestep's mean, which then takes in
/// every row, one after the other.
struct IetAgc {
  double mem_ratio, decay;
  std::vector<double> mean = std::vector<double>(1000);

  std::vector<float> step(const at::Tensor& t, const at::Tensor& loss) {
    std::vector<float> kept;
    for (int64_t i = 0; i < t.size(0); ++i)
      kept.push_back(loss[i].item<double>() * mem_ratio >= mean[t[i].item<int64_t>()] ? 1 : 0);
    for (int64_t i = 0; i < t.size(0); ++i) {
      double& m = mean[t[i].item<int64_t>()];
      m = decay * m + (1 - decay) * loss[i].item<double>();
    }
    return kept;
  }
};

/// A step's rows: few timesteps, so that several rows share one; losses that spread over orders of magnitude.
struct Losses {
  Losses(int64_t step, int64_t rows) {
    const auto g = at::detail::createCPUGenerator(31 + step);
    t = at::randint(12, {rows}, g, at::kLong) * 83;
    loss = (at::randn({rows}, g) * 0.7).exp();
  }
  Batch batch(int64_t from, int64_t to) const {
    return toy::scripted(at::arange(from, to), t.slice(0, from, to), loss.slice(0, from, to), at::ones({to - from}));
  }
  at::Tensor t, loss;
};

std::vector<float> values(const at::Tensor& t) {
  const at::Tensor c = t.contiguous();
  return {c.const_data_ptr<float>(), c.const_data_ptr<float>() + c.numel()};
}

}  // namespace

TEST_CASE("configs/iet_agc.yaml drops the rows that IET-AGC's rule drops, also in large steps", "[baseline]") {
  const int64_t rows = GENERATE(24, 700);
  const double mem_ratio = GENERATE(1.25, 2.0);
  auto sieve = from_config("iet_agc", std::make_shared<SoloComm>(), toy::setup(rows, rows),
                           {"sieve.threshold.drop=" + std::to_string(mem_ratio)});
  IetAgc rule{mem_ratio, 0.8};
  float dropped = 0;
  for (int64_t step = 0; step < 30; ++step) {
    const Losses now(step, rows);
    const auto plan = sieve.inspect(now.batch(0, rows), {step, 0});
    sieve.end_step({step, 0});
    INFO(step);
    CHECK(values(plan.weight()) == rule.step(now.t, now.loss));
    dropped += (1 - plan.weight()).sum().item<float>();
  }
  CHECK(dropped > 0.05 * 30 * static_cast<double>(rows));
  CHECK(dropped < 0.6 * 30 * static_cast<double>(rows));
}

TEST_CASE("IET-AGC's means are the same on one rank and two, and go on after a resume", "[baseline]") {
  constexpr int64_t kRows = 24, kSteps = 20;
  std::vector<at::Tensor> weights(2), means(2);
  const auto errors = toy::on_ranks(2, [&](const std::shared_ptr<Communicator>& communicator) {
    const int64_t rank = communicator->rank();
    auto sieve = std::make_unique<Sieve>(from_config("iet_agc", communicator, toy::setup(kRows, kRows, 2)));
    std::vector<at::Tensor> mine;
    for (int64_t step = 0; step < kSteps; ++step) {
      if (step == kSteps / 2) {
        const auto state = sieve->state();
        sieve = std::make_unique<Sieve>(from_config("iet_agc", communicator, toy::setup(kRows, kRows, 2)));
        sieve->restore(state);
      }
      const Losses now(step, kRows);
      mine.push_back(sieve->inspect(now.batch(rank * kRows / 2, (rank + 1) * kRows / 2), {step, 0}).weight());
      sieve->end_step({step, 0});
    }
    weights[rank] = at::stack(mine);
    means[rank] = sieve->state().at("running_mean");
  });
  CHECK(errors == std::vector<std::string>(2));
  CHECK(at::equal(means[0], means[1]));
  IetAgc rule{1.25, 0.8};
  for (int64_t step = 0; step < kSteps; ++step) {
    const Losses now(step, kRows);
    CHECK(values(at::cat({weights[0][step], weights[1][step]})) == rule.step(now.t, now.loss));
  }
}

TEST_CASE("IET-AGC's mean knows captioned rows alone, and asks for the plain error", "[baseline]") {
  auto sieve = from_config("iet_agc", std::make_shared<SoloComm>(), toy::setup(4, 4));
  Batch batch =
      toy::scripted(at::arange(4), at::tensor({5, 5, 6, 7}), at::tensor({1.0F, 2.0F, 3.0F, 4.0F}), at::ones({4}));
  batch.has_caption = at::tensor({1, 1, 0, 1}).to(at::kBool);
  sieve.inspect(batch, {});
  sieve.end_step({});
  const at::Tensor mean = sieve.state().at("running_mean");
  CHECK(mean[5].item<float>() == Approx(-(0.8 * 0.2 * 1 + 0.2 * 2)));
  CHECK(mean[6].item<float>() == 0);
  CHECK(mean[7].item<float>() == Approx(-0.2 * 4));
  for (const char* other : {"sieve.filters.prediction_error.scale=log", "sieve.filters.magnitude.norm=l2"}) {
    CHECK_THROWS_WITH(
        from_config("iet_agc", std::make_shared<SoloComm>(), toy::setup(4, 4), {other}),
        Contains("standardise.by: running_mean compares a row's own error with the mean error; use it with "
                 "`filters: {prediction_error: {scale: linear}}` and no other"));
  }
}

namespace {

/// How often each row is trained on in `steps` steps, in the order of its loss; losses are new in each.
std::vector<double> selected(double keep, int64_t rows, int64_t steps) {
  auto sieve = from_config("selective_backprop", std::make_shared<SoloComm>(), toy::setup(rows, rows),
                           {"sieve.filters.selective_backprop.keep=" + std::to_string(keep)});
  at::Tensor times = at::zeros({rows});
  const auto most = std::max<int64_t>(1, static_cast<int64_t>(keep * static_cast<double>(rows)));
  for (int64_t step = 0; step < steps; ++step) {
    const auto g = at::detail::createCPUGenerator(step);
    const at::Tensor loss = at::rand({rows}, g) + 0.1, t = at::randint(1000, {rows}, g, at::kLong);
    const at::Tensor weight = sieve.inspect(toy::scripted(at::arange(rows), t, loss, loss), {step, 0}).weight();
    sieve.end_step({step, 0});
    REQUIRE(weight.sum().item<int64_t>() == most);
    times += weight.index_select(0, at::argsort(loss));
  }
  times /= static_cast<double>(steps);
  return {times.const_data_ptr<float>(), times.const_data_ptr<float>() + rows};
}

/// The probability of being among the first `left` drawn without replacement, each with probability proportional to its
/// weight among those that are left; summed over all orders.
void inclusion(const std::vector<double>& weight, std::vector<bool>& drawn, double probability, int64_t left,
               std::vector<double>& result) {
  if (left == 0) return;
  double sum = 0;
  for (size_t i = 0; i < weight.size(); ++i) sum += drawn[i] ? 0 : weight[i];
  for (size_t i = 0; i < weight.size(); ++i) {
    if (drawn[i]) continue;
    const double p = probability * weight[i] / sum;
    result[i] += p;
    drawn[i] = true;
    inclusion(weight, drawn, p, left - 1, result);
    drawn[i] = false;
  }
}

}  // namespace

TEST_CASE("configs/selective_backprop.yaml trains on rows as often as Composer's select_using_loss would",
          "[baseline]") {
  const auto [keep, rows] = GENERATE(table<double, int64_t>({{0.5, 6}, {0.34, 6}, {0.75, 5}, {0.1, 4}}));
  constexpr int64_t kSteps = 3000;
  std::vector<double> weight, expected(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i)
    weight.push_back(std::pow((static_cast<double>(i) + 0.5) / static_cast<double>(rows), 1 / keep - 1));
  std::vector<bool> drawn(static_cast<size_t>(rows));
  inclusion(weight, drawn, 1, std::max<int64_t>(1, static_cast<int64_t>(keep * static_cast<double>(rows))), expected);
  const auto found = selected(keep, rows, kSteps);
  for (size_t i = 0; i < found.size(); ++i) {
    INFO(i);
    // Four standard deviations of a share of 3000.
    CHECK(found[i] == Approx(expected[i]).margin(4 * 0.5 / std::sqrt(static_cast<double>(kSteps))));
  }
}

TEST_CASE("Selective-Backprop draws the same again from the same rows, and leaves rows without a caption alone",
          "[baseline]") {
  const Losses now(0, 16);
  std::vector<at::Tensor> weights;
  for (int i = 0; i < 2; ++i) {
    auto sieve = from_config("selective_backprop", std::make_shared<SoloComm>(), toy::setup(16, 16));
    weights.push_back(sieve.inspect(now.batch(0, 16), {}).weight());
  }
  CHECK(at::equal(weights[0], weights[1]));
  auto sieve = from_config("selective_backprop", std::make_shared<SoloComm>(), toy::setup(16, 16));
  Batch batch = now.batch(0, 16);
  batch.has_caption = at::zeros({16}, at::kBool);
  CHECK(sieve.inspect(batch, {}).weight().sum().item<float>() == 16);
}

}  // namespace of_test_baselines
