#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <memsieve/error.h>
#include <diffusion/noise/ddim.h>
#include <diffusion/noise/parametrization.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace memsieve::diffusion {

namespace {

/// How much of x0 and how much noise there is at one timestep.
struct Level {
  double signal, noise;
};

struct Step {
  double timestep;
  Level from, to;
};

// The noise in x, of which the clean sample x0 is known before it was clamped.
at::Tensor implied_noise(Prediction kind, const at::Tensor& x, const at::Tensor& prediction, const at::Tensor& x0,
                         const Level& level) {
  switch (kind) {
    case Prediction::epsilon:
      return prediction;
    case Prediction::v:
      return level.signal * prediction + level.noise * x;
    case Prediction::flow:
      return x + level.signal * prediction;
    case Prediction::sample:
      break;
  }
  return (x - level.signal * x0) / level.noise;
}

at::Tensor previous_sample(Prediction kind, const at::Tensor& x, const at::Tensor& prediction, const Step& step,
                           const DdimOptions& options) {
  at::Tensor x0 = implied_x0(kind, x, prediction, step.from.signal, step.from.noise);
  const at::Tensor noise = implied_noise(kind, x, prediction, x0, step.from);
  if (options.clip_sample) x0 = x0.clamp(-options.clip_sample_range, options.clip_sample_range);
  return step.to.signal * x0 + step.to.noise * noise;
}

std::vector<Step> ddim_steps(const NoiseSchedule& schedule, const DdimOptions& options) {
  const double* alpha = schedule.alphas_cumprod().const_data_ptr<double>();
  const auto level = [](double a) { return Level{std::sqrt(a), std::sqrt(1 - a)}; };
  const int64_t stride = schedule.num_timesteps() / options.steps;
  std::vector<Step> steps;
  for (const int64_t t : ddim_timesteps(schedule.num_timesteps(), options)) {
    const double last = options.set_alpha_to_one ? 1 : alpha[0];
    steps.push_back({static_cast<double>(t), level(alpha[t]), level(t >= stride ? alpha[t - stride] : last)});
  }
  return steps;
}

// Noise levels evenly from 1 to 1 / T, then 0.
std::vector<Step> euler_steps(const NoiseSchedule& schedule, const DdimOptions& options) {
  const auto count = static_cast<double>(schedule.num_timesteps());
  std::vector<double> levels;
  for (int64_t i = 0; i < options.steps; ++i) {
    const double part = options.steps > 1 ? static_cast<double>(i) / static_cast<double>(options.steps - 1) : 0;
    levels.push_back(1 + part * (1 / count - 1));
  }
  levels.push_back(0);
  std::vector<Step> steps;
  for (size_t i = 0; i + 1 < levels.size(); ++i) {
    const double s = levels[i], next = levels[i + 1];
    steps.push_back({s * count - static_cast<double>(schedule.first_timestep()), {1 - s, s}, {1 - next, next}});
  }
  return steps;
}

// numpy's arange(T, 0, -T / steps), rounded half to even as numpy does, minus 1. numpy takes the difference of its
// first two values for the stride, which decides what half is.
std::vector<int64_t> trailing_timesteps(int64_t count, int64_t steps) {
  std::vector<int64_t> timesteps;
  const auto first = static_cast<double>(count);
  const double stride = (first - first / static_cast<double>(steps)) - first;
  for (int64_t i = 0; i < steps; ++i)
    timesteps.push_back(static_cast<int64_t>(std::nearbyint(first + static_cast<double>(i) * stride)) - 1);
  return timesteps;
}

std::vector<int64_t> linspace_timesteps(int64_t count, int64_t steps) {
  std::vector<int64_t> timesteps;
  const double step = steps > 1 ? static_cast<double>(count - 1) / static_cast<double>(steps - 1) : 0;
  for (int64_t i = steps - 1; i >= 0; --i)
    timesteps.push_back(static_cast<int64_t>(std::nearbyint(static_cast<double>(i) * step)));
  return timesteps;
}

std::vector<Step> steps_of(const NoiseSchedule& schedule, const DdimOptions& options) {
  return schedule.prediction() == Prediction::flow ? euler_steps(schedule, options) : ddim_steps(schedule, options);
}

// The loop. predict(number, timestep, x, timestep [1]) -> the guided prediction, float32; `first_steps` -1 = all.
template <class GuidedPrediction>
at::Tensor draw(const NoiseSchedule& schedule, const at::Tensor& noise, const DdimOptions& options, int64_t first_steps,
                const GuidedPrediction& predict) {
  at::Tensor x = noise.to(at::kFloat);
  int64_t number = 0;
  for (const Step& step : steps_of(schedule, options)) {
    if (number == first_steps) break;
    const at::Tensor timestep = timestep_tensor(schedule, step.timestep, x.device());
    x = previous_sample(schedule.prediction(), x, predict(number, step.timestep, x, timestep), step, options);
    ++number;
  }
  return x;
}

}  // namespace

std::vector<int64_t> ddim_timesteps(int64_t num_train_timesteps, const DdimOptions& options, const std::string& where) {
  if (options.steps < 1 || options.steps > num_train_timesteps)
    throw ConfigError(where + ": steps is " + std::to_string(options.steps) + "; it must be between 1 and " +
                      std::to_string(num_train_timesteps));
  if (options.timestep_spacing == "trailing") return trailing_timesteps(num_train_timesteps, options.steps);
  if (options.timestep_spacing == "linspace") return linspace_timesteps(num_train_timesteps, options.steps);
  if (options.timestep_spacing != "leading")
    throw ConfigError(where + ": unknown timestep_spacing '" + options.timestep_spacing +
                      "'; use leading, trailing or linspace");
  const int64_t ratio = num_train_timesteps / options.steps;
  const int64_t last = (options.steps - 1) * ratio + options.steps_offset;
  if (options.steps_offset < 0 || last >= num_train_timesteps)
    throw ConfigError(where + ": steps " + std::to_string(options.steps) + " with steps_offset " +
                      std::to_string(options.steps_offset) + " begins at timestep " + std::to_string(last) +
                      ", but the schedule ends at " + std::to_string(num_train_timesteps - 1) + "; use fewer steps");
  std::vector<int64_t> timesteps;
  for (int64_t i = options.steps - 1; i >= 0; --i) timesteps.push_back(i * ratio + options.steps_offset);
  return timesteps;
}

at::Tensor guided(const at::Tensor& null, const at::Tensor& captioned, double guidance) {
  return null + guidance * (captioned - null);
}

std::vector<double> draw_timesteps(const NoiseSchedule& schedule, const DdimOptions& options,
                                   const std::string& where) {
  if (schedule.prediction() != Prediction::flow) ddim_timesteps(schedule.num_timesteps(), options, where);
  std::vector<double> timesteps;
  for (const Step& step : steps_of(schedule, options)) timesteps.push_back(step.timestep);
  return timesteps;
}

at::Tensor timestep_tensor(const NoiseSchedule& schedule, double timestep, c10::Device device) {
  const bool flow = schedule.prediction() == Prediction::flow;
  return at::full({1}, timestep, at::TensorOptions(flow ? at::kFloat : at::kLong).device(device));
}

at::Tensor ddim_sample(const NoiseSchedule& schedule, const Predict& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options) {
  if (options.guidance > 1)
    return ddim_sample(schedule, model, noise, condition, null, options,
                       [&](const DrawStep& step) { return guided(step.null, step.captioned, options.guidance); });
  // The caption alone, at half the cost.
  const c10::NoGradGuard no_grad;
  return draw(schedule, noise, options, -1, [&](int64_t, double, const at::Tensor& x, const at::Tensor& timestep) {
    return model(x, timestep.expand({x.size(0)}), condition).to(at::kFloat);
  });
}

at::Tensor ddim_sample(const NoiseSchedule& schedule, const Predict& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options,
                       const DrawHook& hook, const DrawLoop& loop) {
  const c10::AutoGradMode mode(loop.gradient);
  const Conditioning uncaptioned = condition.uncaptioned(null);
  const int64_t rows = noise.size(0);
  const auto predict = [&](int64_t number, double t, const at::Tensor& x, const at::Tensor& timestep) {
    Conditioning asked = condition;
    if (loop.gradient) asked.text = condition.text.detach().requires_grad_(true);
    const at::Tensor answer =
        model(at::cat({x, x}), timestep.expand({2 * rows}), cat(uncaptioned, asked)).to(at::kFloat);
    return hook({.number = number,
                 .timestep = t,
                 .x = x,
                 .null = answer.narrow(0, 0, rows).detach(),
                 .captioned = answer.narrow(0, rows, rows),
                 .condition = asked})
        .detach();
  };
  return draw(schedule, noise, options, loop.first_steps, predict);
}

}  // namespace memsieve::diffusion
