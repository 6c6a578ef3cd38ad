// The signals that every registry knows; filters/NAME.cpp tells where each comes from.
#include <ATen/ATen.h>
#include <memsieve/signal.h>

namespace memsieve {

namespace {

/// [k]: mean over C,H,W of (prediction - target)^2.
at::Tensor error(const at::Tensor& prediction, const at::Tensor& target) {
  return (prediction - target).square().flatten(1).mean(1);
}

/// A prediction that meets its target exactly has no logarithm.
at::Tensor log_error(const at::Tensor& prediction, const at::Tensor& target) {
  return error(prediction, target).clamp_min(1e-12).log();
}

at::Tensor prediction_error(const SignalRows& rows) {
  return error(rows.prediction, rows.target);
}

/// By how much the prediction beats the counterfactual one.
at::Tensor log_error_gain(const SignalRows& rows) {
  return log_error(rows.counterfactual, rows.target) - log_error(rows.prediction, rows.target);
}

at::Tensor distance(const SignalRows& rows) {
  return (rows.prediction - rows.counterfactual).flatten(1).norm(2, {1});
}

}  // namespace

SignalRegistry builtin_signals() {
  SignalRegistry registry;
  registry.add({"prediction_error", "Mean over C,H,W of (prediction - target)^2.", "", prediction_error});
  registry.add({"magnitude", "Euclidean distance over C,H,W between the predictions with the caption and without.",
                "null", distance, /*is_norm=*/true});
  registry.add(
      {"start_gap", "Logarithm of the starting model's error minus that of the error now.", "start", log_error_gain});
  registry.add({"caption_gain", "Logarithm of the error without the caption minus that of the error with it.", "null",
                log_error_gain});
  registry.add({"guidance_gap",
                "Euclidean distance over C,H,W between the predictions at two embedded guidance scales.", "guidance",
                distance, /*is_norm=*/true});
  return registry;
}

}  // namespace memsieve
