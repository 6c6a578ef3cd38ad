// The signals that every registry knows.
#include <ATen/ATen.h>
#include <memsieve/signal.h>

namespace memsieve {

namespace {

at::Tensor prediction_error(const SignalRows& rows) {
  return (rows.prediction - rows.target).square().flatten(1).mean(1);
}

at::Tensor magnitude(const SignalRows& rows) {
  return (rows.prediction - rows.counterfactual).flatten(1).norm(2, {1});
}

}  // namespace

SignalRegistry builtin_signals() {
  SignalRegistry registry;
  registry.add({"prediction_error", "Mean over C,H,W of (prediction - target)^2.", "", prediction_error});
  registry.add({"magnitude", "Euclidean distance over C,H,W between the predictions with the caption and without.",
                "null", magnitude, /*is_norm=*/true});
  return registry;
}

}  // namespace memsieve
