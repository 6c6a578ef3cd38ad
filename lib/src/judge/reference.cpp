#include "judge/reference.h"

#include <ATen/ATen.h>

#include <limits>

#include "full_precision.h"

namespace memsieve {

namespace {
constexpr int64_t kRemembered = 2048;  // a few hundred pictures' visits: enough for C + 1 coefficients
constexpr int64_t kEnough = 64;        // rows below which nothing is subtracted

at::Tensor design(const at::Tensor& easiness) {
  return at::cat({at::ones({easiness.size(0), 1}, easiness.options()), easiness}, 1);
}
}  // namespace

Reference::Reference(int64_t pictures, int64_t channels, at::Device device)
    : easiness(at::zeros({pictures, channels}, at::device(device).dtype(at::kFloat))),
      coefficients(at::zeros({channels, channels + 1}, at::device(device).dtype(at::kFloat))),
      recent(1, kRemembered, 2 * channels, device) {}

void Reference::set(const at::Tensor& picture, const at::Tensor& bin, const at::Tensor& raw,
                    const at::Tensor& from_population, int64_t bins, double clip) {
  at::Tensor z = at::full_like(raw, std::numeric_limits<float>::quiet_NaN());
  for (int64_t b = 0; b < bins; ++b) {
    const auto here = at::nonzero(bin == b).squeeze(1);
    const auto base = at::nonzero((bin == b) & from_population).squeeze(1);
    if (here.size(0) == 0 || base.size(0) == 0) continue;
    for (int64_t c = 0; c < raw.size(1); ++c) {
      const auto stats = robust(raw.index_select(0, base).select(1, c).reshape({1, -1, 1}));
      const auto values = raw.index_select(0, here).select(1, c);
      z.select(1, c).index_copy_(0, here, ((values - stats.median) / stats.scale.clamp_min(1e-12)).clamp(-clip, clip));
    }
  }
  const auto known = at::isnan(z).logical_not().to(at::kFloat);
  const auto sum = at::zeros_like(easiness).index_add_(0, picture, at::nan_to_num(z, 0.0));
  const auto count = at::zeros_like(easiness).index_add_(0, picture, known);
  easiness.copy_(sum / count.clamp_min(1));
}

void Reference::fold(const at::Tensor& picture, const at::Tensor& z, const at::Tensor& valid) {
  const auto b = easiness.index_select(0, picture);
  recent.fold(at::zeros_like(picture), at::cat({z, b}, 1), valid);
}

void Reference::fit() {
  const FullPrecision full_precision;
  const int64_t channels = coefficients.size(0);
  const auto rows = recent.values().select(0, 0);
  const auto x = design(at::nan_to_num(rows.slice(1, channels), 0.0));
  for (int64_t c = 0; c < channels; ++c) {
    const auto y = rows.select(1, c);
    const auto known = at::isnan(y).logical_not().to(at::kFloat).unsqueeze(1);
    const auto xk = x * known;
    // A small ridge keeps the system regular while few rows are known.
    const auto normal = at::mm(xk.t(), x) + 0.1 * at::eye(channels + 1, x.options());
    const auto right = at::mm(xk.t(), at::nan_to_num(y, 0.0).unsqueeze(1));
    const auto solved = std::get<0>(at::linalg_solve_ex(normal, right)).squeeze(1);
    coefficients.select(0, c).copy_(at::where(known.sum() >= kEnough, solved, at::zeros_like(solved)));
  }
}

at::Tensor Reference::explained(const at::Tensor& picture) const {
  const FullPrecision full_precision;
  return at::mm(design(easiness.index_select(0, picture)), coefficients.t());
}

}  // namespace memsieve
