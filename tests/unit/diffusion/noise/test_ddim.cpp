// DDIM against diffusers' DDIMScheduler (scaled_linear, clip_sample and set_alpha_to_one off, steps_offset 1, leading
// spacing) on the toy model 0.3 tanh(x) + 0.1 mean(text) + t / 5000.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <memsieve/error.h>
#include <diffusion/noise/ddim.h>

#include <catch2/catch.hpp>
#include <map>

namespace of_test_ddim {

using namespace memsieve::diffusion;

namespace {

at::Tensor noise() {
  return at::arange(24, at::kFloat).cos().view({2, 3, 2, 2});
}
// Means .5 and -1.
at::Tensor text() {
  return at::tensor({0.25f, 0.75f, -1.5f, -0.5f}).view({2, 1, 2});
}

at::Tensor toy(const at::Tensor& x, const at::Tensor& t, const Conditioning& c) {
  const auto column = [](const at::Tensor& v) { return v.view({-1, 1, 1, 1}); };
  return 0.3 * x.tanh() + 0.1 * column(c.text.mean(at::IntArrayRef{1, 2})) + column(t.to(at::kFloat) / 5000);
}

at::Tensor draw(const std::string& prediction, int64_t steps, double guidance, const Predict& model = toy) {
  ScheduleConfig config;
  config.prediction_type = prediction;
  DdimOptions options;
  options.steps = steps;
  options.guidance = guidance;
  return ddim_sample(NoiseSchedule(config), model, noise(), text(), at::zeros({1, 2}), options);
}

}  // namespace

TEST_CASE("timesteps are those of diffusers") {
  DdimOptions options;
  options.steps = 7;
  REQUIRE(ddim_timesteps(1000, options) == std::vector<int64_t>{853, 711, 569, 427, 285, 143, 1});
  options.steps = 25;
  const auto t = ddim_timesteps(1000, options);
  REQUIRE((t.size() == 25 && t.front() == 961 && t.back() == 1));
}

TEST_CASE("drawn pictures are those of diffusers") {
  const std::map<std::pair<std::string, int>, std::vector<double>> expected{
      {{"epsilon", 25}, {5.1180649, -0.53633142, -2.2720573, 8.5604744, -2.1844394}},
      {{"epsilon", 7}, {3.099339, -0.28504044, -1.3301606, 5.0514884, -1.2566811}},
      {{"v_prediction", 25}, {0.38596633, -0.080945387, -0.25216502, 0.82991403, -0.063721687}},
      {{"v_prediction", 7}, {0.32560879, -0.087417699, -0.23793024, 0.73398948, -0.049571216}},
      {{"sample", 25}, {0.33902326, 0.26749155, 0.23228425, -0.2651988, -0.43884}},
      {{"sample", 7}, {0.38010919, 0.29038605, 0.24313693, -0.19399531, -0.42925912}}};
  for (const auto& [which, values] : expected) {
    const auto flat = draw(which.first, which.second, 3.0).flatten();
    INFO(which.first << ", " << which.second << " steps");
    const int64_t places[] = {0, 5, 11, 12, 23};
    for (int i = 0; i < 5; ++i) CHECK(flat[places[i]].item<double>() == Approx(values[i]).epsilon(1e-4).margin(1e-5));
  }
}

TEST_CASE("guidance is one forward of [null; text], and none at 1") {
  std::vector<int64_t> rows;
  bool null_first = true;
  const Predict spy = [&](const at::Tensor& x, const at::Tensor& t, const Conditioning& c) {
    const at::Tensor& embedding = c.text;
    rows.push_back(x.size(0));
    if (x.size(0) == 4) null_first = null_first && embedding.narrow(0, 0, 2).abs().max().item<double>() == 0;
    REQUIRE((t.size(0) == x.size(0) && embedding.size(0) == x.size(0) && t.scalar_type() == at::kLong));
    REQUIRE_FALSE(c10::GradMode::is_enabled());
    return toy(x, t, embedding);
  };
  draw("v_prediction", 5, 2.0, spy);
  REQUIRE(rows == std::vector<int64_t>(5, 4));
  REQUIRE(null_first);
  rows.clear();
  const auto plain = draw("v_prediction", 5, 1.0, spy);
  REQUIRE(rows == std::vector<int64_t>(5, 2));
  REQUIRE(at::allclose(plain, draw("v_prediction", 5, 1.0000001), 1e-4, 1e-5));
}

TEST_CASE("a picture's drawing does not depend on its batch") {
  ScheduleConfig config;
  const NoiseSchedule schedule(config);
  const auto both = draw("epsilon", 5, 2.0);
  DdimOptions options;
  options.steps = 5;
  const auto second =
      ddim_sample(schedule, toy, noise().narrow(0, 1, 1), text().narrow(0, 1, 1), at::zeros({1, 2}), options);
  REQUIRE(at::allclose(second[0], both[1]));
}

TEST_CASE("numbers of steps that do not fit are refused") {
  DdimOptions options;
  for (const int64_t steps : {0, -3, 1001, 1000}) {
    options.steps = steps;
    REQUIRE_THROWS_AS(ddim_timesteps(1000, options), memsieve::ConfigError);
  }
  options.steps = 1000;
  options.steps_offset = 0;
  REQUIRE(ddim_timesteps(1000, options).front() == 999);
}

namespace {

at::Tensor draw_hooked(const DrawHook& hook, const DrawLoop& loop = {}, const std::string& prediction = "epsilon") {
  ScheduleConfig config;
  config.prediction_type = prediction;
  DdimOptions options;
  options.steps = 7;
  return ddim_sample(NoiseSchedule(config), toy, noise(), text(), at::zeros({1, 2}), options, hook, loop);
}

}  // namespace

TEST_CASE("a hook that guides as usual draws the same picture") {
  for (const char* prediction : {"epsilon", "v_prediction", "flow"}) {
    std::vector<double> timesteps;
    const at::Tensor drawn = draw_hooked(
        [&](const DrawStep& step) {
          timesteps.push_back(step.timestep);
          REQUIRE(step.number == static_cast<int64_t>(timesteps.size()) - 1);
          REQUIRE(at::equal(step.null, toy(step.x, at::full({2}, step.timestep), at::zeros({2, 1, 2}))));
          return guided(step.null, step.captioned, 3.0);
        },
        {}, prediction);
    CHECK(at::equal(drawn, draw(prediction, 7, 3.0)));
    ScheduleConfig config;
    config.prediction_type = prediction;
    DdimOptions options;
    options.steps = 7;
    CHECK(timesteps == draw_timesteps(NoiseSchedule(config), options));
  }
}

TEST_CASE("drawing stops after the steps asked for") {
  int64_t calls = 0;
  const auto hook = [&](const DrawStep& step) {
    ++calls;
    return step.captioned;
  };
  draw_hooked(hook, {.first_steps = 2});
  CHECK(calls == 2);
  CHECK(at::equal(draw_hooked(hook, {.first_steps = 0}), noise()));
}

TEST_CASE("with gradient a step can be differentiated by the caption, and drawing is the same") {
  std::vector<at::Tensor> gradients;
  const auto hook = [&](const DrawStep& step) {
    REQUIRE_FALSE(step.null.requires_grad());
    REQUIRE_FALSE(step.x.requires_grad());
    step.captioned.sum().backward();
    gradients.push_back(step.condition.text.grad());
    return guided(step.null, step.captioned, 3.0);
  };
  CHECK(at::equal(draw_hooked(hook, {.gradient = true}), draw("epsilon", 7, 3.0)));
  REQUIRE(gradients.size() == 7);
  // 0.1 * mean over 2 numbers, for each of 12 pixels.
  for (const at::Tensor& g : gradients) CHECK(at::allclose(g, at::full({2, 1, 2}, 0.6)));
}

}  // namespace of_test_ddim
