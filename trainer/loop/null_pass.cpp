#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/loop/null_pass.h>

namespace memsieve::trainer {

Batch batch_of(const NoisyRows& rows, const at::Tensor& prediction) {
  Batch batch;
  batch.sample_id = rows.ids;
  batch.timestep = rows.timestep;
  batch.prediction = prediction;
  batch.target = rows.target;
  batch.has_caption = rows.captioned;
  return batch;
}

NullPrediction NullPass::of(const NoisyRows& rows, const Conditioning& null) {
  return [this, rows, null](const at::Tensor& which) { return predict(rows, null, which); };
}

void NullPass::await(NoisyRows rows) {
  waiting_ = Waiting{std::move(rows), {}};
}

const at::Tensor& NullPass::awaited() {
  const at::NoGradGuard no_grad;
  Waiting& w = waiting_.value();
  if (!w.prediction.defined()) w.prediction = model_.predict(w.rows.noisy, w.rows.timestep, w.rows.condition);
  return w.prediction;
}

at::Tensor NullPass::predict(const NoisyRows& rows, const Conditioning& null, const at::Tensor& which) {
  const at::NoGradGuard no_grad;
  const at::Tensor noisy = rows.noisy.index_select(0, which), timestep = rows.timestep.index_select(0, which);
  const Conditioning uncaptioned = rows.condition.select(which).uncaptioned(null);
  if (!waiting_ || waiting_->prediction.defined()) return model_.predict(noisy, timestep, uncaptioned);
  const NoisyRows& more = waiting_->rows;
  const at::Tensor both = model_.predict(at::cat({noisy, more.noisy}), at::cat({timestep, more.timestep}),
                                         cat(uncaptioned, more.condition));
  waiting_->prediction = both.slice(0, which.size(0));
  return both.slice(0, 0, which.size(0));
}

}  // namespace memsieve::trainer
