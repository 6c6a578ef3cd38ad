#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <trainer/diffusion/schedule.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace memsieve::trainer {

namespace {

// Nichol and Dhariwal: "Improved Denoising Diffusion Probabilistic Models", ICML 2021, formula (17).
double cosine_alpha_bar(double time) {
  const double c = std::cos((time + 0.008) / 1.008 * std::numbers::pi / 2);
  return c * c;
}

void check(const ScheduleConfig& config) {
  if (config.num_train_timesteps < 1)
    throw ConfigError("schedule: num_train_timesteps is " + std::to_string(config.num_train_timesteps) +
                      "; it must be at least 1");
  if (config.beta_schedule == "squaredcos_cap_v2") return;
  if (config.beta_schedule != "scaled_linear" && config.beta_schedule != "linear")
    throw ConfigError("schedule: unknown beta_schedule '" + config.beta_schedule +
                      "'; use scaled_linear, linear or squaredcos_cap_v2");
  if (!(0 < config.beta_start && config.beta_start <= config.beta_end && config.beta_end < 1))
    throw ConfigError("schedule: beta_start " + std::to_string(config.beta_start) + " and beta_end " +
                      std::to_string(config.beta_end) + " must satisfy 0 < beta_start <= beta_end < 1");
}

double beta(const ScheduleConfig& config, int64_t t) {
  const auto count = static_cast<double>(config.num_train_timesteps);
  if (config.beta_schedule == "squaredcos_cap_v2") {
    const auto now = static_cast<double>(t);
    return std::min(1 - cosine_alpha_bar((now + 1) / count) / cosine_alpha_bar(now / count), 0.999);
  }
  const double fraction = count > 1 ? static_cast<double>(t) / (count - 1) : 0;
  if (config.beta_schedule == "linear")
    return config.beta_start + fraction * (config.beta_end - config.beta_start);
  const double start = std::sqrt(config.beta_start), end = std::sqrt(config.beta_end);
  const double root = start + fraction * (end - start);
  return root * root;
}

// table[t] shaped to broadcast over `like`.
at::Tensor per_row(const at::Tensor& table, const at::Tensor& t, const at::Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[0] = t.size(0);
  return table.index_select(0, t).view(shape);
}

}  // namespace

Prediction prediction_from_name(const std::string& name) {
  if (name == "epsilon") return Prediction::epsilon;
  if (name == "v_prediction") return Prediction::v;
  if (name == "sample") return Prediction::sample;
  throw ConfigError("schedule: unknown prediction_type '" + name + "'; use epsilon, v_prediction or sample");
}

NoiseSchedule::NoiseSchedule(const ScheduleConfig& config, c10::Device device)
    : config_(config), prediction_(prediction_from_name(config.prediction_type)) {
  check(config);
  alphas_cumprod_ = at::empty({config.num_train_timesteps}, at::kDouble);
  double product = 1;
  for (int64_t t = 0; t < config.num_train_timesteps; ++t) {
    product *= 1 - beta(config, t);
    alphas_cumprod_.data_ptr<double>()[t] = product;
  }
  const auto table = [&](const at::Tensor& values) { return values.to(at::kFloat).to(device); };
  sqrt_alpha_ = table(alphas_cumprod_.sqrt());
  sqrt_one_minus_alpha_ = table((1 - alphas_cumprod_).sqrt());
  snr_ = table(alphas_cumprod_ / (1 - alphas_cumprod_));
}

at::Tensor NoiseSchedule::add_noise(const at::Tensor& x0, const at::Tensor& noise,
                                    const at::Tensor& t) const {
  return (per_row(sqrt_alpha_, t, x0) * x0 + per_row(sqrt_one_minus_alpha_, t, x0) * noise)
      .to(x0.scalar_type());
}

at::Tensor NoiseSchedule::target(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const {
  switch (prediction_) {
    case Prediction::epsilon:
      return noise;
    case Prediction::sample:
      return x0;
    case Prediction::v:
      break;
  }
  return (per_row(sqrt_alpha_, t, x0) * noise - per_row(sqrt_one_minus_alpha_, t, x0) * x0)
      .to(x0.scalar_type());
}

at::Tensor NoiseSchedule::snr(const at::Tensor& t) const {
  return snr_.index_select(0, t);
}

at::Tensor NoiseSchedule::min_snr_weight(const at::Tensor& t, double gamma) const {
  const at::Tensor ratio = snr(t), capped = ratio.clamp_max(gamma);
  switch (prediction_) {
    case Prediction::epsilon:
      return capped / ratio;
    case Prediction::v:
      return capped / (ratio + 1);
    case Prediction::sample:
      break;
  }
  return capped;
}

}  // namespace memsieve::trainer
