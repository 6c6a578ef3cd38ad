#pragma once
// Evidence as discounted sums: what a sample's visits have shown, in six bytes a channel. Private to the library.
//
// A sample's z-scores are taken as mu + b + noise of unit variance, with b its own lasting part, of variance tau^2
// among ordinary samples (a random-effects model: Laird and Ware, Biometrics 38, 1982). Then the discounted sum s of n
// visits has the variance V + tau^2 W^2, W = sum of gamma^k and V = sum of gamma^2k over k < n, and
//   T = (s - mu W) / sqrt(V + tau^2 W^2)
// is as wide for any n. Without tau^2, ordinary samples that are a little easier than others would pass any level in
// the long run. Copies are what makes a model memorise: of samples that are judged together with others that resemble
// them (judge/likeness.h) less is asked, by a smaller tau^2.

#include <ATen/core/Tensor.h>

#include "judge/state.h"

namespace memsieve {

class DiscountedSums {
 public:
  struct Options {
    /// gamma, in (0, 1]
    double discount = 0.9;
    /// tau^2 of a sample on its own, and of several that are alike and judged together
    double spread = 3, spread_alike = 0.1;
  };
  /// What slots [B] hold: sums [B, C] float32 and visits [B, C] int16.
  struct Past {
    at::Tensor sum, visits;
  };

  DiscountedSums(const Options& options, int64_t slots, int64_t channels, at::Device device);

  Past recall(const at::Tensor& slot) const;
  /// `past` with one more visit z [B, C] (NaN = not measured).
  Past with_visit(const Past& past, const at::Tensor& z) const;
  /// T [B, C], NaN where there is no visit; `drift` [C] is mu, `spread` tau^2.
  at::Tensor standardised(const Past& past, const at::Tensor& drift, double spread) const;
  /// s / W [B, C]: the discounted mean of the visits, NaN where there is none.
  at::Tensor mean(const Past& past) const;
  /// Of the slots from `from` on.
  Past since(int64_t from) const;
  /// Visits z [R, C] of slots [R] in their global order, where valid [R].
  void fold(const at::Tensor& slot, const at::Tensor& z, const at::Tensor& valid);
  State state() { return {{"sums", &sums_}, {"sums_visits", &visits_}}; }

 private:
  /// Sums over `seen` visits, as they are kept with a count that ends at the largest it can hold.
  at::Tensor kept(const at::Tensor& sum, const at::Tensor& seen) const;
  /// W and V of visits [B, C], float32.
  at::Tensor total_weight(const at::Tensor& visits, double discount) const;

  Options options_;
  int64_t slots_;
  /// [slots + 1, C]; the last row takes what must not be kept
  at::Tensor sums_, visits_;
};

}  // namespace memsieve
