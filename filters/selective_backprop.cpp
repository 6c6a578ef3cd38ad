// Trains on a fixed fraction of the rows of each micro-batch, those with a large loss more often than others. Jiang et
// al., "Accelerating Deep Learning by Focusing on the Biggest Losers", arXiv 1910.00762, in the form of Composer's
// select_using_loss: int(keep * rows) rows are chosen without replacement, with probabilities proportional to
// (percentile of the loss)^(1/keep - 1).
#include <ATen/ATen.h>

#include <algorithm>

#include "filters.h"

namespace memsieve {

namespace {

/// [B] float64 in (0, 1): random numbers that are a function of each row's error and timestep alone, since a filter
/// holds no state. The bits of both are mixed as in a hash of 32 bits.
at::Tensor uniform(const SignalView& view) {
  constexpr int64_t kMask = 0xFFFFFFFF, kFactor = 0x45D9F3B;
  const auto bits = [](const at::Tensor& t) { return t.contiguous().view(at::kInt).to(at::kLong).bitwise_and(kMask); };
  at::Tensor x = bits(view.prediction_error);
  for (const auto& salt : {at::zeros_like(x), bits(view.timestep)}) {
    x = x.bitwise_xor(salt);
    for (int round = 0; round < 2; ++round)
      x = (x.bitwise_xor(at::bitwise_right_shift(x, 16)) * kFactor).bitwise_and(kMask);
    x = x.bitwise_xor(at::bitwise_right_shift(x, 16));
  }
  return (x.to(at::kDouble) + 0.5) / static_cast<double>(kMask + 1);
}

class SelectiveBackprop final : public Filter {
 public:
  explicit SelectiveBackprop(const Settings& options) : keep_(options.real("keep")) {}

  Needs needs() const override { return {.signals = {"prediction_error"}}; }

  /// 0 for the rows to train on, 1 for the others.
  at::Tensor score(const SignalView& view) const override {
    const int64_t rows = view.timestep.size(0);
    const auto kept = std::max<int64_t>(1, static_cast<int64_t>(keep_ * static_cast<double>(rows)));
    const auto place = [](const at::Tensor& t) { return at::argsort(t, /*stable=*/true, /*dim=*/0, false); };
    const auto percentile = (place(place(view.prediction_error)).to(at::kDouble) + 0.5) / static_cast<double>(rows);
    // Gumbel noise and the largest few: the same as drawing one after the other without replacement.
    const auto gumbel = uniform(view).log().neg().log().neg();
    const auto chosen = place((1 / keep_ - 1) * percentile.log() + gumbel).slice(0, rows - kept);
    return at::ones_like(view.prediction_error).index_fill(0, chosen, 0);
  }

 private:
  double keep_;
};

}  // namespace

FilterEntry selective_backprop_filter() {
  Schema options;
  options.real("keep", 0.5, 0.01, 1,
               "share of the rows of each micro-batch that is trained on, rounded down, but at least one");
  return {
      "selective_backprop",
      "1 for the rows of a micro-batch that Selective-Backprop leaves out, 0 for those it trains on: more often those "
      "with a large error. To compare with; its threshold is `fixed`, 0.5.",
      options, [](const Settings& settings) { return std::make_unique<SelectiveBackprop>(settings); }};
}

}  // namespace memsieve
