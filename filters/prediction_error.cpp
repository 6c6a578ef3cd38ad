// A sample's own loss, low = suspicious: a memorised sample is predicted too well for its timestep. Ma et al., arXiv
// 2405.05846, relate the prediction error to replication; the same quantity drives IET-AGC's skipping rule.
#include <ATen/ATen.h>

#include "filters.h"

namespace memsieve {

namespace {

class PredictionError final : public Filter {
 public:
  explicit PredictionError(const Settings& options) : log_(options.text("scale") == "log") {}

  Needs needs() const override { return {.signals = {"prediction_error"}}; }

  at::Tensor score(const SignalView& view) const override {
    const at::Tensor& error = view.prediction_error;
    return log_ ? -error.clamp_min(1e-12).log() : -error;
  }

 private:
  bool log_;
};

}  // namespace

FilterEntry prediction_error_filter() {
  Schema options;
  options.choice("scale", "log", {"log", "linear"}, "score = -log(error) or -error");
  return {"prediction_error", "The sample's own prediction error, which costs no pass; small = memorised.", options,
          [](const Settings& settings) { return std::make_unique<PredictionError>(settings); }};
}

}  // namespace memsieve
