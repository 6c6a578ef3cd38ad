// Numbers of diffusers' DDPMScheduler and compute_snr (version 0.35 and later agree), obtained with its defaults
// unless given.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/noise/schedule.h>

#include <catch2/catch.hpp>

namespace of_test_schedule {

using namespace memsieve::diffusion;

namespace {

NoiseSchedule schedule(const std::string& prediction, const std::string& betas = "scaled_linear") {
  ScheduleConfig config;
  config.prediction_type = prediction;
  config.beta_schedule = betas;
  if (betas == "linear") {
    config.beta_start = 0.0001;
    config.beta_end = 0.02;
  }
  return NoiseSchedule(config);
}

at::Tensor ids(std::vector<int64_t> t) {
  return at::tensor(t, at::kLong);
}

void check_values(const at::Tensor& values, const std::vector<int64_t>& places, const std::vector<double>& expected) {
  const auto flat = values.flatten();
  for (size_t i = 0; i < places.size(); ++i)
    CHECK(flat[places[i]].item<double>() == Approx(expected[i]).epsilon(2e-5).margin(2e-6));
}

const std::vector<int64_t> kPlaces{0, 5, 11, 12, 23};
at::Tensor pictures() {
  return at::arange(24, at::kFloat).view({2, 3, 2, 2}) / 10 - 1;
}
at::Tensor noise() {
  return at::arange(24, at::kFloat).cos().view({2, 3, 2, 2});
}

}  // namespace

TEST_CASE("noise levels are those of diffusers") {
  const auto t = ids({0, 1, 250, 500, 999});
  const auto check = [&](const char* name, const std::vector<double>& expected) {
    check_values(schedule("epsilon", name).alphas_cumprod().index_select(0, t), {0, 1, 2, 3, 4}, expected);
  };
  check("scaled_linear", {0.999149978, 0.998296022, 0.673792303, 0.276332468, 0.00466009509});
  check("linear", {0.999899983, 0.999780059, 0.521422982, 0.0777966529, 4.03583035e-05});
  check("squaredcos_cap_v2", {0.999958694, 0.99991256, 0.845888019, 0.492285043, 2.42873499e-09});
}

TEST_CASE("noised pictures and velocities are those of diffusers") {
  const auto t = ids({100, 700});
  check_values(schedule("epsilon").add_noise(pictures(), noise(), t), kPlaces,
               {-0.62040025, -0.38056043, 0.096002787, 0.86573946, -0.13693118});
  check_values(schedule("v_prediction").target(pictures(), noise(), t), kPlaces,
               {1.2708673, 0.4308573, -0.02833827, 0.050838888, -1.3982706});
  REQUIRE(at::equal(schedule("epsilon").target(pictures(), noise(), t), noise()));
  REQUIRE(at::equal(schedule("sample").target(pictures(), noise(), t), pictures()));
}

TEST_CASE("the dtype of the pictures is kept") {
  const auto half = pictures().to(at::kBFloat16);
  REQUIRE(schedule("v_prediction").add_noise(half, noise().to(at::kBFloat16), ids({1, 2})).scalar_type() ==
          at::kBFloat16);
  REQUIRE(schedule("v_prediction").target(half, noise().to(at::kBFloat16), ids({1, 2})).scalar_type() == at::kBFloat16);
}

TEST_CASE("signal-to-noise ratios and Min-SNR weights are those of diffusers") {
  const auto t = ids({0, 250, 500, 999});
  const std::vector<double> snr{1175.44055, 2.06553173, 0.381850064, 0.00468191225};
  const auto expect = [&](const std::string& prediction, double gamma) {
    std::vector<double> weights;
    for (const double s : snr)
      weights.push_back(std::min(s, gamma) / (prediction == "epsilon" ? s : prediction == "v_prediction" ? s + 1 : 1));
    check_values(schedule(prediction).min_snr_weight(t, gamma), {0, 1, 2, 3}, weights);
  };
  // The table rounds alphas_cumprod to float32, which at t = 0 costs diffusers five digits of 1 / (1 - a).
  const auto ours = schedule("epsilon").snr(t);
  for (int i = 0; i < 4; ++i) CHECK(ours[i].item<double>() == Approx(snr[i]).epsilon(1e-4));
  expect("v_prediction", 5);
  expect("sample", 5);
  const auto epsilon = schedule("epsilon").min_snr_weight(t, 5);
  CHECK(epsilon[0].item<double>() == Approx(5 / snr[0]).epsilon(1e-4));
  CHECK(epsilon[3].item<double>() == 1.0);
}

TEST_CASE("impossible schedules are refused") {
  ScheduleConfig config;
  const auto refuse = [](ScheduleConfig c, const char* part) {
    REQUIRE_THROWS_WITH(NoiseSchedule(c), Catch::Contains(part) && !Catch::Contains("\n"));
    REQUIRE_THROWS_AS(NoiseSchedule(c), memsieve::ConfigError);
  };
  config.prediction_type = "v";
  refuse(config, "use epsilon, v_prediction, sample or flow");
  config = {};
  config.beta_schedule = "cosine";
  refuse(config, "squaredcos_cap_v2");
  config = {};
  config.beta_end = 0.0001;
  refuse(config, "0 < beta_start <= beta_end < 1");
  config = {};
  config.rescale_betas_zero_snr = true;
  refuse(config, "pure noise");
  config.prediction_type = "flow";
  refuse(config, "no meaning");
  config = {};
  config.num_train_timesteps = 0;
  refuse(config, "num_train_timesteps");
}

TEST_CASE("the picture behind a perfect prediction is the picture") {
  const at::Tensor t = ids({400, 990});
  for (const char* name : {"epsilon", "v_prediction", "sample", "flow"}) {
    INFO(name);
    const NoiseSchedule s = schedule(name);
    const at::Tensor x = s.add_noise(pictures(), noise(), t);
    CHECK(at::allclose(s.predicted_sample(x, s.target(pictures(), noise(), t), t), pictures(), 1e-4, 1e-4));
  }
}

}  // namespace of_test_schedule
