#include <ATen/ATen.h>
#include <diffusion/models/families.h>
#include <trainer/loop/trainee.h>

namespace memsieve::trainer {

Trainee::Trainee(Model model, const TraineeOptions& options, Group& group)
    : model_(std::move(model)),
      optimizer_(model_.parameters(), options.optimizer, options.max_train_steps),
      reducer_(model_.parameter_list(), group, options.bucket_mb) {
  if (options.loss_scale) loss_scale_.emplace(*options.loss_scale, group.device());
  if (options.ema_decay) ema_.emplace(model_.parameter_list(), *options.ema_decay);
}

void Trainee::settle_buckets(const at::Tensor& nothing, const Conditioning& condition) {
  const at::Tensor timestep = at::zeros({1}, nothing.options().dtype(at::kLong));
  const at::Tensor loss = 0 * model_.predict(nothing, timestep, condition).mean();
  reducer_.prepare(loss, /*sync=*/true);
  loss.backward();
  for (auto& p : model_.parameter_list()) p.mutable_grad().reset();
}

void Trainee::backward(const at::Tensor& loss, bool sync) {
  reducer_.prepare(loss, sync);
  (loss_scale_ ? loss * loss_scale_->scale() : loss).backward();
}

at::Tensor Trainee::loss_scale() const {
  if (loss_scale_) return loss_scale_->scale().to(at::kDouble);
  return at::zeros({}, at::TensorOptions(at::kDouble).device(model_.device()));
}

Update Trainee::update(StepEnd end) {
  if (loss_scale_) end.grad_scale = end.grad_scale * loss_scale_->scale();
  Update update = optimizer_.step(end);
  if (loss_scale_) update.nonfinite = loss_scale_->adapt(end.skip, update.nonfinite);
  update.nonfinite = at::maximum(update.nonfinite, end.nonfinite);
  if (ema_) ema_->update(optimizer_.updates(), update.skipped);
  return update;
}

void Trainee::restore(const std::string& checkpoint) {
  const std::string file = checkpoint + "/optimizer.safetensors";
  TensorMap saved = load_safetensors(file);
  if (loss_scale_) loss_scale_->restore(saved, file);
  optimizer_.restore(saved, file);
  if (ema_) restore_ema(checkpoint);
}

void Trainee::restore_ema(const std::string& checkpoint) {
  const std::string folder = checkpoint + "/" + model_.kind() + "_ema";
  if (Lora* lora = model_.lora()) {
    const WithEma averages_in_place(&*ema_);
    lora->restore(folder + "/" + lora_file_name);
  } else {
    ema_->copy_from(load_denoiser(folder)->module().parameters());
  }
}

CheckpointParts Trainee::checkpoint_parts() {
  CheckpointParts parts;
  parts.weights_name = model_.kind();
  parts.save_weights = [this](const std::string& to) { model_.save(to); };
  if (ema_) {
    parts.save_weights_ema = [this](const std::string& to) {
      const WithEma averaged(&*ema_);
      model_.save(to);
    };
  }
  parts.optimizer = optimizer_.state();
  if (loss_scale_) parts.optimizer.merge(loss_scale_->state());
  return parts;
}

}  // namespace memsieve::trainer
