// fp16's loss scale: torch.amp.GradScaler's rule, and an update that an overflow leaves alone.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <trainer/optim/loss_scale.h>
#include <trainer/optim/optimizer.h>

#include <catch2/catch.hpp>
#include <limits>

namespace of_test_loss_scale {

using namespace memsieve;
using namespace memsieve::trainer;

namespace {

at::Tensor flag(double value) {
  return at::full({}, value, at::kFloat);
}

/// torch.amp.GradScaler, by hand.
struct Rule {
  double scale;
  int64_t interval, growth = 0;
  void update(bool overflow) {
    if (overflow) {
      scale *= 0.5;
      growth = 0;
    } else if (++growth == interval) {
      scale *= 2;
      growth = 0;
    }
  }
};

/// One parameter whose gradient is what the loss scale makes of `gradient`.
Update step(AdamW& optimizer, const at::Tensor& p, LossScale& scale, double gradient, StepEnd end) {
  p.mutable_grad() = at::full({3}, gradient, at::kFloat) * scale.scale();
  end.grad_scale = end.grad_scale * scale.scale();
  Update update = optimizer.step(end);
  update.nonfinite = scale.adapt(end.skip, update.nonfinite);
  return update;
}

}  // namespace

TEST_CASE("the scale grows and falls as torch.amp.GradScaler's") {
  LossScale scale({1024, 3}, c10::kCPU);
  Rule rule{1024, 3};
  for (const bool overflow : {false, false, true, false, false, false, false, false, true, true, false, false, false}) {
    scale.adapt(flag(0), flag(overflow ? 1 : 0));
    rule.update(overflow);
    CHECK(scale.scale().item<double>() == rule.scale);
  }
  CHECK(rule.scale == 512);  // it has done both
}

TEST_CASE("a step that asks for no update moves nothing") {
  LossScale scale({1024, 2}, c10::kCPU);
  scale.adapt(flag(0), flag(0));
  scale.adapt(flag(1), flag(0));
  CHECK(scale.scale().item<double>() == 1024);
  scale.adapt(flag(0), flag(0));
  CHECK(scale.scale().item<double>() == 2048);
}

TEST_CASE("scaled gradients make the same update, and clipping sees them unscaled") {
  OptimizerConfig config;
  config.max_grad_norm = 0.5;
  const at::Tensor a = at::ones({3}).requires_grad_(true), b = at::ones({3}).requires_grad_(true);
  AdamW one({{"p", a}}, config, 10), two({{"p", b}}, config, 10);
  LossScale off({1, 1000}, c10::kCPU), on({65536, 2}, c10::kCPU);
  for (const double gradient : {0.25, -3.0, 0.125, 7.0}) {
    const StepEnd end{flag(0.75), flag(0)};  // some rows dropped
    const Update x = step(one, a, off, gradient, end), y = step(two, b, on, gradient, end);
    CHECK(at::equal(x.grad_norm, y.grad_norm));
    CHECK(at::equal(a, b));
  }
  CHECK(on.scale().item<double>() == 65536 * 4);
}

TEST_CASE("an overflow changes nothing but the scale, and counts as non-finite only at scale 1") {
  const at::Tensor p = at::ones({3}).requires_grad_(true);
  OptimizerConfig config;
  AdamW optimizer({{"p", p}}, config, 10);
  LossScale scale({4, 1000}, c10::kCPU);
  const StepEnd end{flag(1), flag(0)};
  step(optimizer, p, scale, 0.5, end);
  const at::Tensor before = p.detach().clone();
  const auto state = optimizer.state();
  std::vector<double> counted;
  for (int i = 0; i < 4; ++i) {
    const double bad = i % 2 == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
    const Update update = step(optimizer, p, scale, bad, end);
    CHECK(update.skipped.item<double>() == 1);
    counted.push_back(update.nonfinite.item<double>());
  }
  CHECK(counted == std::vector<double>{0, 0, 1, 1});  // at 4, 2, 1, 0.5
  CHECK(scale.scale().item<double>() == 0.25);
  CHECK(at::equal(p, before));
  for (const auto& [name, tensor] : optimizer.state()) CHECK(at::equal(tensor, state.at(name)));
}

TEST_CASE("the loss scale's state comes back, and a state without it is refused") {
  LossScale one({1024, 3}, c10::kCPU), two({65536, 3}, c10::kCPU);
  one.adapt(flag(0), flag(0));
  one.adapt(flag(0), flag(0));
  auto state = one.state();
  state["updates"] = flag(2);
  two.restore(state, "file");
  CHECK(state.size() == 1);
  two.adapt(flag(0), flag(0));
  CHECK(two.scale().item<double>() == 2048);
  CHECK_THROWS_AS(two.restore(state, "file"), DataError);
}

}  // namespace of_test_loss_scale
