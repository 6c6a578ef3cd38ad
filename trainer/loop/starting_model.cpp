#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/loop/starting_model.h>

namespace memsieve::trainer {

StartingModel::StartingModel(std::unique_ptr<Model> copy) : copy_(std::move(copy)), model_(*copy_) {
  copy_->freeze();
}

at::Tensor StartingModel::predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) {
  const at::NoGradGuard no_grad;
  const AdaptersOff off(model_);
  return model_.predict(sample, timestep, condition);
}

int64_t StartingModel::bytes() const {
  int64_t sum = 0;
  if (!copy_) return sum;
  for (const auto& p : copy_->denoiser().module().parameters()) sum += static_cast<int64_t>(p.nbytes());
  return sum;
}

}  // namespace memsieve::trainer
