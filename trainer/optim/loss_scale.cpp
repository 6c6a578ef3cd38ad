#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <trainer/optim/loss_scale.h>

namespace memsieve::trainer {

LossScale::LossScale(const LossScaleOptions& options, c10::Device device)
    : growth_interval_(options.growth_interval),
      scale_(at::full({}, options.initial, at::TensorOptions(at::kFloat).device(device))),
      growth_(at::zeros({}, at::TensorOptions(at::kInt).device(device))) {}

at::Tensor LossScale::adapt(const at::Tensor& skip, const at::Tensor& overflow) {
  at::NoGradGuard no_grad;
  at::Tensor blameless = overflow * (scale_ <= 1);
  at::Tensor scale = scale_.clone(), growth = growth_.clone();
  at::_amp_update_scale_(scale, growth, overflow, /*scale_growth_factor=*/2, /*scale_backoff_factor=*/0.5,
                         growth_interval_);
  const at::Tensor keep = skip > 0;
  scale_.copy_(at::where(keep, scale_, scale));
  growth_.copy_(at::where(keep, growth_, growth));
  return blameless;
}

std::map<std::string, at::Tensor> LossScale::state() const {
  return {{"loss_scale", scale_.cpu()}, {"loss_scale_growth", growth_.cpu()}};
}

void LossScale::restore(std::map<std::string, at::Tensor>& state, const std::string& where) {
  for (const auto& [name, into] : {std::pair{"loss_scale", scale_}, {"loss_scale_growth", growth_}}) {
    const auto found = state.find(name);
    if (found == state.end() || found->second.sizes() != into.sizes() ||
        found->second.scalar_type() != into.scalar_type())
      throw DataError(where + ": " + name + " is missing or has another shape; the checkpoint is not of fp16");
    into.copy_(found->second);
    state.erase(found);
  }
}

}  // namespace memsieve::trainer
