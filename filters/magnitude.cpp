// The text-conditional prediction magnitude: || prediction(e) - prediction(null) ||_2. Wen, Liu, Chen, Lyu, "Detecting,
// Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024, section 3.1.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "filters.h"

namespace memsieve {

namespace {

class Magnitude final : public Filter {
 public:
  explicit Magnitude(const Settings& options)
      : rms_(options.text("norm") == "rms"),
        log_(options.text("scale") == "log"),
        timestep_min_(options.real("timestep_min")) {}

  Needs needs() const override { return {.signals = {"magnitude"}, .timestep_min = timestep_min_}; }

  at::Tensor score(const SignalView& view) const override {
    at::Tensor m = view.magnitude;
    if (rms_) m = m / std::sqrt(static_cast<double>(view.elements));
    if (!log_) return m;
    // Exactly 0: the caption is the empty one, so there was nothing to measure; a logarithm would call it an extreme.
    return m.masked_fill(m == 0, std::numeric_limits<double>::quiet_NaN()).clamp_min(1e-12).log();
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
      .choice(
          "scale", "linear", {"linear", "log"},
          "`log` makes the z-scores of `standardise.by: timestep` symmetric; use `linear` with a fixed threshold. A "
          "magnitude of exactly 0, that of an empty caption, has no logarithm and counts as not measured")
      .real("timestep_min", 0, 0, 1e9,
            "rows below this timestep are not scored: near low noise the magnitude carries little signal");
  return {"magnitude", "Distance between the predictions with the caption and with the empty one; large = memorised.",
          options, [](const Settings& settings) { return std::make_unique<Magnitude>(settings); }};
}

}  // namespace memsieve
