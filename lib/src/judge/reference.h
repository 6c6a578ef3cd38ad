#pragma once
// What the model at the start of fine-tuning already found easy. Private to the library.
//
// Each picture's mean z-score per channel under the starting model, b, predicts part of its later z-scores without any
// memorisation. A least-squares line through rows of the reference population (z ~ 1 + b_1 + ... + b_C) is subtracted.

#include <ATen/core/Tensor.h>

#include "judge/window.h"

namespace memsieve {

class Reference {
 public:
  Reference() = default;
  Reference(int64_t pictures, int64_t channels, at::Device device);

  /// Draws of the starting model: picture [R] int64, bin [R] int64 in [0, bins), raw [R, C], from_population [R] bool
  /// (the rows that set each bin's median and MAD). Fills `easiness`. May synchronise: it runs once, before training.
  void set(const at::Tensor& picture, const at::Tensor& bin, const at::Tensor& raw, const at::Tensor& from_population,
           int64_t bins, double clip);
  /// Appends z [R, C] of pictures [R], where valid, to the rows that the line is fitted to.
  void fold(const at::Tensor& picture, const at::Tensor& z, const at::Tensor& valid);
  /// Refits the line.
  void fit();
  /// [R, C]: the part of z that the starting model explains.
  at::Tensor explained(const at::Tensor& picture) const;

  /// [pictures, C] float32, 0 = average
  at::Tensor easiness;
  /// [C, C + 1] float32
  at::Tensor coefficients;
  /// one ring of z and b, [1, 2048, 2C]
  Rings recent;
};

}  // namespace memsieve
