#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/optim/ema.h>

namespace memsieve::trainer {

Ema::Ema(std::vector<at::Tensor> parameters, double decay) : decay_(decay), parameters_(std::move(parameters)) {
  for (const auto& p : parameters_) averages_.push_back(p.detach().clone());
}

void Ema::update(const at::Tensor& updates, const at::Tensor& skipped) {
  at::NoGradGuard no_grad;
  const at::Tensor decay = ((1 + updates) / (10 + updates)).clamp_max(decay_);
  auto difference = at::_foreach_sub(parameters_, averages_);
  // A skipped step adds exactly 0. (The parameters are finite: a non-finite gradient never reaches them.)
  at::_foreach_mul_(difference, (1 - decay) * (1 - skipped));
  at::_foreach_add_(averages_, difference);
}

void Ema::swap() {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    at::Tensor data = parameters_[i].detach();
    const at::Tensor kept = data.clone();
    data.copy_(averages_[i]);
    averages_[i].copy_(kept);
  }
}

void Ema::copy_from(const std::vector<at::Tensor>& values) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < averages_.size(); ++i) averages_[i].copy_(values.at(i));
}

}  // namespace memsieve::trainer
