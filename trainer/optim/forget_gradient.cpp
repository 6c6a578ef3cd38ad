#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/optim/forget_gradient.h>
#include <trainer/optim/optimizer.h>

namespace memsieve::trainer {

std::vector<at::Tensor> take_gradients(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> out;
  for (const auto& p : parameters) {
    out.push_back(p.grad().clone());  // it may be a view of a bucket, which the next backward fills
    p.mutable_grad().reset();
  }
  return out;
}

at::Tensor subtract_forget_gradient(const std::vector<at::Tensor>& parameters, const std::vector<at::Tensor>& keep,
                                    double share) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> forget;
  forget.reserve(parameters.size());
  for (const auto& p : parameters) forget.push_back(p.grad());
  const at::Tensor norm = total_norm(forget);
  // A norm of NaN is not above 0 either: then 0 times the gradient is NaN, where it must be.
  at::Tensor k = at::where(norm > 0, share * total_norm(keep) / norm, at::zeros_like(norm));
  at::_foreach_mul_(forget, -k);
  at::_foreach_add_(forget, keep);
  return k;
}

}  // namespace memsieve::trainer
