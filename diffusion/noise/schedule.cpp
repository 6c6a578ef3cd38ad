#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/noise/parametrization.h>
#include <diffusion/noise/schedule.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace memsieve::diffusion {

namespace {

constexpr int64_t kMostTimesteps = 1 << 20;

// Nichol and Dhariwal: "Improved Denoising Diffusion Probabilistic Models", ICML 2021, formula (17).
double cosine_alpha_bar(double time) {
  const double c = std::cos((time + 0.008) / 1.008 * std::numbers::pi / 2);
  return c * c;
}

double beta(const ScheduleConfig& config, int64_t t) {
  const auto count = static_cast<double>(config.num_train_timesteps);
  if (config.beta_schedule == "squaredcos_cap_v2") {
    const auto now = static_cast<double>(t);
    return std::min(1 - cosine_alpha_bar((now + 1) / count) / cosine_alpha_bar(now / count), 0.999);
  }
  const double fraction = count > 1 ? static_cast<double>(t) / (count - 1) : 0;
  if (config.beta_schedule == "linear") return config.beta_start + fraction * (config.beta_end - config.beta_start);
  const double start = std::sqrt(config.beta_start), end = std::sqrt(config.beta_end);
  const double root = start + fraction * (end - start);
  return root * root;
}

// Lin, Liu, Li, Yang: "Common Diffusion Noise Schedules and Sample Steps are Flawed", WACV 2024, algorithm 1: sqrt(a)
// is shifted and scaled so that it ends at 0 and begins where it began.
void rescale_to_zero_snr(double* alphas_cumprod, int64_t count) {
  const double first = std::sqrt(alphas_cumprod[0]), last = std::sqrt(alphas_cumprod[count - 1]);
  for (int64_t t = 0; t < count; ++t) {
    const double root = (std::sqrt(alphas_cumprod[t]) - last) * first / (first - last);
    alphas_cumprod[t] = root * root;
  }
}

// table[t] shaped to broadcast over `like`.
at::Tensor per_row(const at::Tensor& table, const at::Tensor& t, const at::Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[0] = t.size(0);
  return table.index_select(0, t).view(shape);
}

}  // namespace

Prediction prediction_from_name(const std::string& name, const std::string& where) {
  if (name == "epsilon") return Prediction::epsilon;
  if (name == "v_prediction") return Prediction::v;
  if (name == "sample") return Prediction::sample;
  if (name == "flow") return Prediction::flow;
  throw ConfigError(where + ": unknown prediction_type '" + name + "'; use epsilon, v_prediction, sample or flow");
}

void check_schedule(const ScheduleConfig& config, const std::string& where) {
  const Prediction prediction = prediction_from_name(config.prediction_type, where);
  if (config.num_train_timesteps < 1 || config.num_train_timesteps > kMostTimesteps)
    throw ConfigError(where + ": num_train_timesteps is " + std::to_string(config.num_train_timesteps) +
                      "; it must lie between 1 and " + std::to_string(kMostTimesteps));
  if (config.rescale_betas_zero_snr) {
    if (prediction == Prediction::epsilon)
      throw ConfigError(where +
                        ": rescale_betas_zero_snr makes the last timestep pure noise, where a model that predicts the "
                        "noise (epsilon) learns nothing about the picture; use prediction_type v_prediction");
    if (prediction == Prediction::flow)
      throw ConfigError(where +
                        ": rescale_betas_zero_snr has no meaning for prediction_type flow, which ends in pure noise "
                        "anyway; set it to false");
    if (config.num_train_timesteps < 2)
      throw ConfigError(where + ": rescale_betas_zero_snr needs at least 2 timesteps");
  }
  if (config.beta_schedule == "squaredcos_cap_v2") return;
  if (config.beta_schedule != "scaled_linear" && config.beta_schedule != "linear")
    throw ConfigError(where + ": unknown beta_schedule '" + config.beta_schedule +
                      "'; use scaled_linear, linear or squaredcos_cap_v2");
  if (!(0 < config.beta_start && config.beta_start <= config.beta_end && config.beta_end < 1))
    throw ConfigError(where + ": beta_start " + std::to_string(config.beta_start) + " and beta_end " +
                      std::to_string(config.beta_end) + " must satisfy 0 < beta_start <= beta_end < 1");
}

NoiseSchedule::NoiseSchedule(const ScheduleConfig& config, c10::Device device) : config_(config) {
  check_schedule(config);
  prediction_ = prediction_from_name(config.prediction_type);
  const int64_t count = config.num_train_timesteps;
  alphas_cumprod_ = at::empty({count}, at::kDouble);
  auto* alpha = alphas_cumprod_.data_ptr<double>();
  const auto table = [&](const at::Tensor& values) { return values.to(at::kFloat).to(device); };
  if (prediction_ == Prediction::flow) {
    const at::Tensor level = at::arange(1, count + 1, at::kDouble) / static_cast<double>(count);
    alphas_cumprod_ = (1 - level).square();
    signal_ = table(1 - level);
    noise_ = table(level);
    snr_ = table(alphas_cumprod_ / level.square());
    return;
  }
  double product = 1;
  for (int64_t t = 0; t < count; ++t) alpha[t] = product *= 1 - beta(config, t);
  if (config.rescale_betas_zero_snr) rescale_to_zero_snr(alpha, count);
  signal_ = table(alphas_cumprod_.sqrt());
  noise_ = table((1 - alphas_cumprod_).sqrt());
  snr_ = table(alphas_cumprod_ / (1 - alphas_cumprod_));
}

at::Tensor NoiseSchedule::add_noise(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const {
  return (per_row(signal_, t, x0) * x0 + per_row(noise_, t, x0) * noise).to(x0.scalar_type());
}

at::Tensor NoiseSchedule::target(const at::Tensor& x0, const at::Tensor& noise, const at::Tensor& t) const {
  switch (prediction_) {
    case Prediction::epsilon:
      return noise;
    case Prediction::sample:
      return x0;
    case Prediction::flow:
      return (noise - x0).to(x0.scalar_type());
    case Prediction::v:
      break;
  }
  return (per_row(signal_, t, x0) * noise - per_row(noise_, t, x0) * x0).to(x0.scalar_type());
}

at::Tensor NoiseSchedule::predicted_sample(const at::Tensor& x, const at::Tensor& prediction,
                                           const at::Tensor& t) const {
  return implied_x0(prediction_, x, prediction, per_row(signal_, t, x), per_row(noise_, t, x)).to(x.scalar_type());
}

at::Tensor NoiseSchedule::snr(const at::Tensor& t) const {
  return snr_.index_select(0, t);
}

at::Tensor NoiseSchedule::min_snr_weight(const at::Tensor& t, double gamma) const {
  const at::Tensor ratio = snr(t);
  at::Tensor capped = ratio.clamp_max(gamma);
  switch (prediction_) {
    case Prediction::epsilon:
      return capped / ratio;
    case Prediction::v:
      return capped / (ratio + 1);
    case Prediction::flow:
      return capped * noise_.index_select(0, t).square();
    case Prediction::sample:
      break;
  }
  return capped;
}

}  // namespace memsieve::diffusion
