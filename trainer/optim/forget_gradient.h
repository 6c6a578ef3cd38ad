#pragma once
// Unlearning by two gradients: SISS without importance sampling (Alberti et al., "Data Unlearning in Diffusion Models",
// ICLR 2025), where that of the pictures to forget is scaled against that of the pictures to keep.

#include <ATen/core/Tensor.h>
#include <trainer/trainer_rooms.h>

#include <vector>

namespace memsieve::trainer {

/// Copies of the parameters' gradients, which are cleared: the next backward begins anew.
std::vector<at::Tensor> take_gradients(const std::vector<at::Tensor>& parameters);

/// The parameters hold the gradients f of what is to be forgotten, `keep` those g of what is to be kept, both in the
/// same units (loss scale, sums of weights of the sieve: whatever is common to all of one side does not matter).
/// Afterwards they hold g - k f with k = share * |g| / |f|, norms over all parameters together, and k = 0 where f is 0.
/// Returns k, 0-dim float32 on the device. NaN or Inf in f or g ends up in the result.
at::Tensor subtract_forget_gradient(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& keep,
                                    double share);

}  // namespace memsieve::trainer
