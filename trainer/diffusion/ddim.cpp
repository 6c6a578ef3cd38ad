#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <memsieve/error.h>
#include <trainer/diffusion/ddim.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace memsieve::trainer {

namespace {

struct Step {
  double alpha, alpha_previous;
};

// What the model says at (x, t), guided, as float32.
at::Tensor guided_prediction(const Denoiser& model, const at::Tensor& x, int64_t t,
                             const Conditioning& condition, double guidance) {
  const bool guided = guidance > 1;
  const int64_t rows = x.size(0);
  const auto steps = at::full({guided ? 2 * rows : rows}, t, x.options().dtype(at::kLong));
  const at::Tensor answer = model(guided ? at::cat({x, x}) : x, steps, condition).to(at::kFloat);
  if (!guided) return answer;
  const at::Tensor null = answer.narrow(0, 0, rows), captioned = answer.narrow(0, rows, rows);
  return null + guidance * (captioned - null);
}

at::Tensor previous_sample(Prediction kind, const at::Tensor& x, const at::Tensor& prediction, Step step) {
  const double a = std::sqrt(step.alpha), s = std::sqrt(1 - step.alpha);
  at::Tensor x0, noise;
  switch (kind) {
    case Prediction::epsilon:
      noise = prediction;
      x0 = (x - s * noise) / a;
      break;
    case Prediction::v:
      x0 = a * x - s * prediction;
      noise = a * prediction + s * x;
      break;
    case Prediction::sample:
      x0 = prediction;
      noise = (x - a * x0) / s;
      break;
  }
  return std::sqrt(step.alpha_previous) * x0 + std::sqrt(1 - step.alpha_previous) * noise;
}

}  // namespace

std::vector<int64_t> ddim_timesteps(int64_t num_train_timesteps, const DdimOptions& options) {
  if (options.steps < 1 || options.steps > num_train_timesteps)
    throw ConfigError("ddim: steps is " + std::to_string(options.steps) + "; it must be between 1 and " +
                      std::to_string(num_train_timesteps));
  const int64_t ratio = num_train_timesteps / options.steps;
  const int64_t last = (options.steps - 1) * ratio + options.steps_offset;
  if (options.steps_offset < 0 || last >= num_train_timesteps)
    throw ConfigError("ddim: steps " + std::to_string(options.steps) + " with steps_offset " +
                      std::to_string(options.steps_offset) + " begins at timestep " + std::to_string(last) +
                      ", but the schedule ends at " + std::to_string(num_train_timesteps - 1) +
                      "; use fewer steps");
  std::vector<int64_t> timesteps;
  for (int64_t i = options.steps - 1; i >= 0; --i) timesteps.push_back(i * ratio + options.steps_offset);
  return timesteps;
}

at::Tensor ddim_sample(const NoiseSchedule& schedule, const Denoiser& model, const at::Tensor& noise,
                       const Conditioning& condition, const Conditioning& null, const DdimOptions& options) {
  c10::NoGradGuard no_grad;
  const auto timesteps = ddim_timesteps(schedule.num_timesteps(), options);
  const int64_t stride = schedule.num_timesteps() / options.steps;
  const double* alpha = schedule.alphas_cumprod().data_ptr<double>();
  const Conditioning both = options.guidance > 1 ? cat(condition.uncaptioned(null), condition) : condition;
  at::Tensor x = noise.to(at::kFloat);
  for (const int64_t t : timesteps) {
    // Below the first timestep stands alphas_cumprod[0], not 1: set_alpha_to_one is off.
    const Step step{alpha[t], alpha[std::max<int64_t>(t - stride, 0)]};
    x = previous_sample(schedule.prediction(), x, guided_prediction(model, x, t, both, options.guidance),
                        step);
  }
  return x;
}

}  // namespace memsieve::trainer
