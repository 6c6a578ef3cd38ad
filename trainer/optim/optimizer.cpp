#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <trainer/optim/optimizer.h>

namespace memsieve::trainer {

at::Tensor total_norm(const std::vector<at::Tensor>& gradients) {
  return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, 2)), 2);
}

AdamW::AdamW(NamedTensors parameters, const OptimizerConfig& config, int64_t max_train_steps)
    : config_(config), schedule_(config, max_train_steps, parameters.at(0).second.device()) {
  for (auto& [name, tensor] : parameters) {
    names_.push_back(name);
    params_.push_back(tensor);
    exp_avg_.push_back(at::zeros_like(tensor.detach(), at::MemoryFormat::Preserve));
    exp_avg_sq_.push_back(at::zeros_like(tensor.detach(), at::MemoryFormat::Preserve));
  }
  updates_ = at::zeros({}, params_[0].options().dtype(at::kFloat).requires_grad(false));
  // The operator only reads the counts, so one tensor serves all parameters.
  step_list_.assign(params_.size(), updates_);
}

Update AdamW::step(const StepEnd& end) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto& p : params_) gradients.push_back(p.grad());
  Update update;
  update.grad_norm = total_norm(gradients) / end.grad_scale;
  const at::Tensor finite = update.grad_norm.isfinite().to(at::kFloat);
  const at::Tensor wanted = 1 - end.skip;
  update.nonfinite = wanted * (1 - finite);
  update.skipped = 1 - wanted * finite;
  update.lr = schedule_.at(updates_);
  if (config_.max_grad_norm > 0) {
    at::_foreach_mul_(gradients, (config_.max_grad_norm / (update.grad_norm + 1e-6)).clamp_max(1.0));
  }
  updates_.add_(1 - update.skipped);
  at::_fused_adamw_(params_, gradients, exp_avg_, exp_avg_sq_, {}, step_list_, update.lr, config_.beta1, config_.beta2,
                    config_.weight_decay, config_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false, end.grad_scale, update.skipped);
  for (auto& p : params_) p.mutable_grad().reset();
  return update;
}

std::map<std::string, at::Tensor> AdamW::state() const {
  std::map<std::string, at::Tensor> out;
  for (size_t i = 0; i < names_.size(); ++i) {
    out["exp_avg." + names_[i]] = exp_avg_[i].cpu().contiguous();
    out["exp_avg_sq." + names_[i]] = exp_avg_sq_[i].cpu().contiguous();
  }
  out["updates"] = updates_.cpu();
  return out;
}

void AdamW::restore(const std::map<std::string, at::Tensor>& state, const std::string& where) {
  at::NoGradGuard no_grad;
  const auto load = [&](const std::string& name, const at::Tensor& into) {
    const auto found = state.find(name);
    if (found == state.end())
      throw DataError(where + ": " + name + " is missing; the checkpoint belongs to another model");
    if (found->second.sizes() != into.sizes() || found->second.scalar_type() != at::kFloat) {
      throw DataError(where + ": " + name +
                      " has another shape or dtype than this model's; use the checkpoint's own model");
    }
    into.copy_(found->second);
  };
  for (size_t i = 0; i < names_.size(); ++i) {
    load("exp_avg." + names_[i], exp_avg_[i]);
    load("exp_avg_sq." + names_[i], exp_avg_sq_[i]);
  }
  load("updates", updates_);
  if (state.size() != 2 * names_.size() + 1) {
    throw DataError(where + ": holds tensors that this model does not have; the checkpoint belongs to another model");
  }
}

}  // namespace memsieve::trainer
