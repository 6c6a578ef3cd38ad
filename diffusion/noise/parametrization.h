#pragma once
// What each kind of prediction says about the clean sample.

#include <ATen/core/Tensor.h>
#include <diffusion/noise/schedule.h>

namespace memsieve::diffusion {

/// x0 that a prediction for x = signal * x0 + noise * epsilon implies (Salimans and Ho, ICLR 2022, appendix D); any
/// shape. `signal` and `noise` are numbers, or tensors that broadcast over x.
template <class Level>
at::Tensor implied_x0(Prediction kind, const at::Tensor& x, const at::Tensor& prediction, const Level& signal,
                      const Level& noise) {
  switch (kind) {
    case Prediction::epsilon:
      return (x - noise * prediction) / signal;
    case Prediction::sample:
      return prediction;
    case Prediction::flow:
      return x - noise * prediction;
    case Prediction::v:
      break;
  }
  return signal * x - noise * prediction;
}

}  // namespace memsieve::diffusion
