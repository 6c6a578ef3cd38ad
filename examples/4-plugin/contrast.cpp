// A filter in a shared object of its own: how large the effect of the caption is, compared with the error that is left.
#include <ATen/ATen.h>
#include <memsieve/plugin.h>

#include <limits>

namespace {

class Contrast final : public memsieve::Filter {
 public:
  explicit Contrast(double timestep_min) : timestep_min_(timestep_min) {}
  memsieve::Needs needs() const override {
    return {.signals = {"magnitude", "prediction_error"}, .timestep_min = timestep_min_};
  }

  /// log(magnitude / ||prediction - target||); NaN where the magnitude was not measured.
  at::Tensor score(const memsieve::SignalView& view) const override {
    at::Tensor error = (view.prediction_error * double(view.elements)).sqrt();
    at::Tensor score = (view.magnitude / error.clamp_min(1e-12)).clamp_min(1e-12).log();
    return at::where(view.timestep >= timestep_min_, score, std::numeric_limits<double>::quiet_NaN());
  }

 private:
  double timestep_min_;
};

void add_filters(memsieve::FilterRegistry& registry) {
  registry.add({"contrast", "Text-conditional magnitude over the norm of the prediction error, logarithmic.",
                memsieve::Schema().real("timestep_min", 0, 0, 1e9, "rows below this timestep are not scored"),
                [](const memsieve::Settings& options) -> std::unique_ptr<memsieve::Filter> {
                  return std::make_unique<Contrast>(options.real("timestep_min"));
                }});
}

}  // namespace

MEMSIEVE_PLUGIN(add_filters)
