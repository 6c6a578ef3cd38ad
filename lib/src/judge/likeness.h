#pragma once
// Likeness: rows that resemble those just judged memorised are probed first. Private to the library.
//
// Copies of a picture are alike, in their caption or in what they show. So a row that was found out says where to look
// next, and that there is something to be found. Features are compared by the cosine after their mean is taken away.

#include <ATen/core/Tensor.h>

#include "judge/state.h"
#include "judge/window.h"
#include "signals/features.h"

namespace memsieve {

class Likeness {
 public:
  explicit Likeness(at::Device device);

  /// features [B, kLikenessWidth] of slots [B] -> [B] float32 in [0, 1]: 0 = unlike all other slots that were found out
  /// lately, 1 = the same.
  at::Tensor of(const at::Tensor& features, const at::Tensor& slot) const;
  /// Features [R, kLikenessWidth] of a step's rows of slots [R] where counted [R]; those where
  /// found_out [R] are remembered.
  void fold(const at::Tensor& features, const at::Tensor& slot, const at::Tensor& counted, const at::Tensor& found_out);
  State state();

 private:
  at::Tensor centred(const at::Tensor& features) const;

  /// [kLikenessWidth] and []: mean of the features, and the steps it is over
  at::Tensor mean_, steps_;
  /// [1, remembered, kLikenessWidth + 1]: unit vectors, and whose they are
  Rings found_out_;
};

}  // namespace memsieve
