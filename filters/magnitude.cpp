// The text-conditional prediction magnitude: || prediction(e) - prediction(null) ||_2. Wen, Liu, Chen, Lyu, "Detecting,
// Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024, section 3.1.
#include <ATen/ATen.h>

#include <cmath>

#include "filters.h"

namespace memsieve {

namespace {

class Magnitude final : public Filter {
 public:
  explicit Magnitude(const Settings& options)
      : rms_(options.text("norm") == "rms"),
        log_(options.text("scale") == "log"),
        timestep_min_(options.real("timestep_min")) {}

  Needs needs() const override { return {.magnitude = true, .timestep_min = timestep_min_}; }

  at::Tensor score(const SignalView& view) const override {
    at::Tensor m = view.magnitude;
    if (rms_) m = m / std::sqrt(static_cast<double>(view.elements));
    return log_ ? m.clamp_min(1e-12).log() : m;
  }

 private:
  bool rms_, log_;
  double timestep_min_;
};

}  // namespace

FilterEntry magnitude_filter() {
  Schema options;
  options
      .choice("norm", "l2", {"l2", "rms"},
              "`l2`: Euclidean norm over C,H,W, as published; `rms`: divided by sqrt(C·H·W), so that one threshold "
              "serves every latent size")
      .choice("scale", "linear", {"linear", "log"},
              "`log` makes the z-scores of `standardise.by: timestep` symmetric; use `linear` with a fixed threshold")
      .real("timestep_min", 0, 0, 1e9,
            "rows below this timestep are not scored: near low noise the magnitude carries little signal");
  return {"magnitude", "Distance between the predictions with the caption and with the empty one; large = memorised.",
          options, [](const Settings& settings) { return std::make_unique<Magnitude>(settings); }};
}

}  // namespace memsieve
