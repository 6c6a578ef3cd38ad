// The update: AdamW as torch's, clipping as torch's, and nothing at all when it is to be skipped.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <trainer/optim/ema.h>
#include <trainer/optim/optimizer.h>

#include <catch2/catch.hpp>
#include <limits>

namespace of_test_optimizer {

using namespace memsieve;
using namespace memsieve::trainer;

namespace {

StepEnd end_of(double scale, double skip) {
  return {at::full({}, scale, at::kFloat), at::full({}, skip, at::kFloat)};
}

NamedTensors parameters(uint64_t seed) {
  at::manual_seed(seed);
  NamedTensors out;
  out.emplace_back("a", at::randn({5, 3}).requires_grad_(true));
  out.emplace_back("b", at::randn({4, 2, 3, 3}).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(true));
  out.emplace_back("c", at::randn({7}).requires_grad_(true));
  return out;
}

std::vector<at::Tensor> tensors(const NamedTensors& named) {
  std::vector<at::Tensor> out;
  for (const auto& [name, tensor] : named) out.push_back(tensor);
  return out;
}

void give_gradients(const NamedTensors& named, int step, double factor = 1) {
  at::manual_seed(1000 + step);
  for (const auto& [name, p] : named)
    p.mutable_grad() = (at::randn(p.sizes()) * factor).contiguous(p.suggest_memory_format());
}

OptimizerConfig config(double max_norm) {
  OptimizerConfig c;
  c.learning_rate = 0.125;
  c.weight_decay = 0.03;
  c.max_grad_norm = max_norm;
  return c;
}

}  // namespace

TEST_CASE("AdamW and clipping equal torch's own") {
  const double max_norm = GENERATE(0.5, 1e6);
  NamedTensors mine = parameters(1), theirs = parameters(1);
  AdamW optimizer(mine, config(max_norm), 100);
  torch::optim::AdamW reference(tensors(theirs), torch::optim::AdamWOptions(0.125).weight_decay(0.03));
  for (int step = 0; step < 5; ++step) {
    give_gradients(mine, step);
    give_gradients(theirs, step);
    const double norm = torch::nn::utils::clip_grad_norm_(tensors(theirs), max_norm);
    reference.step();
    const Update update = optimizer.step(end_of(1, 0));
    CHECK(update.grad_norm.item<double>() == Approx(norm));
    CHECK(update.skipped.item<double>() == 0);
    for (size_t i = 0; i < mine.size(); ++i) CHECK(at::allclose(mine[i].second, theirs[i].second, 1e-5, 1e-6));
  }
  CHECK(optimizer.updates().item<double>() == 5);
}

TEST_CASE("the gradient scale divides before clipping") {
  NamedTensors plain = parameters(1), scaled = parameters(1);
  AdamW a(plain, config(0.5), 100), b(scaled, config(0.5), 100);
  for (int step = 0; step < 3; ++step) {
    give_gradients(plain, step);
    give_gradients(scaled, step, 0.25);  // a power of two, so that the two are equal to the last bit
    const Update x = a.step(end_of(1, 0)), y = b.step(end_of(0.25, 0));
    CHECK(at::equal(x.grad_norm, y.grad_norm));
  }
  for (size_t i = 0; i < plain.size(); ++i) CHECK(at::equal(plain[i].second, scaled[i].second));
}

TEST_CASE("a skipped step changes nothing") {
  NamedTensors params = parameters(1);
  OptimizerConfig c = config(0.5);
  c.lr_scheduler = "linear";
  AdamW optimizer(params, c, 100);
  Ema ema(tensors(params), 0.9);
  give_gradients(params, 0);
  Update update = optimizer.step(end_of(1, 0));
  ema.update(optimizer.updates(), update.skipped);

  std::vector<at::Tensor> before;
  for (const auto& p : tensors(params)) before.push_back(p.detach().clone());
  std::vector<at::Tensor> averages;
  for (const auto& a : ema.averages()) averages.push_back(a.clone());
  const auto state = optimizer.state();

  const bool by_gradient = GENERATE(false, true);
  give_gradients(params, 1, by_gradient ? std::numeric_limits<double>::quiet_NaN() : 1);
  const double lr = update.lr.item<double>();
  update = optimizer.step(end_of(1, by_gradient ? 0 : 1));
  ema.update(optimizer.updates(), update.skipped);

  CHECK(update.skipped.item<double>() == 1);
  CHECK(update.nonfinite.item<double>() == (by_gradient ? 1 : 0));
  for (size_t i = 0; i < before.size(); ++i) {
    CHECK(at::equal(before[i], params[i].second));
    CHECK(at::equal(averages[i], ema.averages()[i]));
  }
  for (const auto& [name, tensor] : optimizer.state()) CHECK(at::equal(tensor, state.at(name)));
  // The schedule stands still as well: the next update takes the rate that this one would have had.
  give_gradients(params, 2);
  const Update next = optimizer.step(end_of(1, 0));
  CHECK(next.lr.item<double>() == update.lr.item<double>());
  CHECK(next.lr.item<double>() < lr);
}

TEST_CASE("the optimiser's state comes back") {
  NamedTensors one = parameters(1), two = parameters(1);
  AdamW a(one, config(0.5), 100), b(two, config(0.5), 100);
  give_gradients(one, 0);
  a.step(end_of(1, 0));
  {
    at::NoGradGuard no_grad;
    for (size_t i = 0; i < one.size(); ++i) two[i].second.copy_(one[i].second);
  }
  b.restore(a.state(), "file");
  give_gradients(one, 1);
  give_gradients(two, 1);
  a.step(end_of(1, 0));
  b.step(end_of(1, 0));
  for (size_t i = 0; i < one.size(); ++i) CHECK(at::equal(one[i].second, two[i].second));

  auto state = a.state();
  state.erase("exp_avg.b");
  CHECK_THROWS_AS(b.restore(state, "file"), DataError);
  state = a.state();
  state["exp_avg.b"] = at::zeros({1});
  CHECK_THROWS_AS(b.restore(state, "file"), DataError);
  state = a.state();
  state["exp_avg.z"] = at::zeros({1});
  CHECK_THROWS_AS(b.restore(state, "file"), DataError);
}

TEST_CASE("EMA follows its formula and swaps to and fro") {
  const at::Tensor p = at::full({3}, 1.0, at::kFloat);
  Ema ema({p}, 0.5);
  p.fill_(3);
  ema.update(at::full({}, 1, at::kFloat), at::zeros({}));  // decay min(0.5, 2/11)
  CHECK(ema.averages()[0][0].item<double>() == Approx(1 + (1 - 2.0 / 11) * 2));
  p.fill_(5);
  const double before = ema.averages()[0][0].item<double>();
  ema.update(at::full({}, 100, at::kFloat), at::zeros({}));  // decay 0.5
  CHECK(ema.averages()[0][0].item<double>() == Approx(0.5 * before + 0.5 * 5));
  const at::Tensor average = ema.averages()[0].clone();
  {
    const WithEma inside(&ema);
    CHECK(at::equal(p, average));
  }
  CHECK(p[0].item<double>() == 5);
  CHECK(at::equal(ema.averages()[0], average));
}

TEST_CASE("learning-rate schedules") {
  OptimizerConfig c;
  const auto at_update = [&](int64_t n) { return lr_factor(c, 1000, n); };
  c.lr_warmup_steps = 100;
  CHECK(at_update(0) == 1);  // constant has no warm-up
  c.lr_scheduler = "constant_with_warmup";
  CHECK(at_update(0) == 0);
  CHECK(at_update(50) == 0.5);
  CHECK(at_update(100) == 1);
  CHECK(at_update(999) == 1);
  c.lr_scheduler = "linear";
  CHECK(at_update(100) == 1);
  CHECK(at_update(550) == Approx(0.5));
  CHECK(at_update(1000) == 0);
  c.lr_decay_fraction = 0.3;
  CHECK(at_update(50) == 0.5);
  CHECK(at_update(700) == 1);
  CHECK(at_update(850) == Approx(0.5));
  c.lr_scheduler = "cosine";
  c.lr_decay_fraction = 1;
  CHECK(at_update(100) == 1);
  CHECK(at_update(325) == Approx(0.5 * (1 + std::sqrt(0.5))));
  CHECK(at_update(1000) == Approx(0).margin(1e-12));
}

TEST_CASE("the table of learning rates holds what the formula says") {
  OptimizerConfig c;
  c.learning_rate = 0.3;
  c.lr_warmup_steps = 3;
  c.lr_scheduler = GENERATE("constant", "constant_with_warmup", "linear", "cosine");
  const LrSchedule schedule(c, 10, c10::kCPU);
  for (int64_t n = 0; n <= 12; ++n) {
    const double expected = 0.3 * lr_factor(c, 10, std::min<int64_t>(n, 10));
    CHECK(schedule.at(at::full({}, n, at::kFloat)).item<double>() == expected);
  }
}

}  // namespace of_test_optimizer
