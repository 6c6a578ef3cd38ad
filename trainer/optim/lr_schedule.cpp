#include <ATen/ATen.h>
#include <trainer/optim/lr_schedule.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace memsieve::trainer {

/// The learning rate at which `polynomial` ends, in diffusers.
constexpr double kPolynomialEnd = 1e-7;

double lr_factor(const OptimizerConfig& config, int64_t max_train_steps, int64_t updates) {
  if (config.lr_scheduler == "constant") return 1;
  if (updates < config.lr_warmup_steps)
    return static_cast<double>(updates) / static_cast<double>(config.lr_warmup_steps);
  if (config.lr_scheduler == "constant_with_warmup") return 1;
  const auto last_part =
      static_cast<int64_t>(std::llround(config.lr_decay_fraction * static_cast<double>(max_train_steps)));
  const int64_t begin = std::max(config.lr_warmup_steps, max_train_steps - last_part);
  if (updates < begin) return 1;
  const double progress =
      static_cast<double>(updates - begin) / static_cast<double>(std::max<int64_t>(1, max_train_steps - begin));
  if (config.lr_scheduler == "linear") return std::max(0.0, 1 - progress);
  if (config.lr_scheduler == "polynomial") {
    const double end = std::min(1.0, kPolynomialEnd / config.learning_rate);
    return progress >= 1 ? end : end + (1 - end) * std::pow(1 - progress, config.lr_power);
  }
  if (progress >= 1) return 0;
  const bool restarts = config.lr_scheduler == "cosine_with_restarts";
  const double cycle = restarts ? std::fmod(progress * static_cast<double>(config.lr_num_cycles), 1.0) : progress;
  return 0.5 * (1 + std::cos(std::numbers::pi * cycle));
}

LrSchedule::LrSchedule(const OptimizerConfig& config, int64_t max_train_steps, c10::Device device) {
  // Beyond the warm-up the constant schedules hold their last value: no table as long as the run is needed.
  int64_t last = max_train_steps;
  if (config.lr_scheduler == "constant") last = 0;
  if (config.lr_scheduler == "constant_with_warmup") last = std::min(max_train_steps, config.lr_warmup_steps);
  table_ = at::empty({last + 1}, at::kDouble);
  auto* values = table_.mutable_data_ptr<double>();
  for (int64_t i = 0; i <= last; ++i) values[i] = config.learning_rate * lr_factor(config, max_train_steps, i);
  if (!device.is_cpu()) table_ = table_.to(at::kFloat).to(device);
}

at::Tensor LrSchedule::at(const at::Tensor& updates) const {
  const at::Tensor index = updates.to(at::kLong).clamp_max(table_.size(0) - 1);
  return table_.index_select(0, index.reshape({1})).squeeze(0);
}

}  // namespace memsieve::trainer
