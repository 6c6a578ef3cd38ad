#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <trainer/loop/sieve_batch.h>

namespace memsieve::trainer {

Batch batch_of(Model& model, const NoisyRows& rows, const at::Tensor& prediction, const Conditioning& null) {
  Batch batch;
  batch.sample_id = rows.ids;
  batch.timestep = rows.timestep;
  batch.prediction = prediction;
  batch.target = rows.target;
  batch.has_caption = rows.captioned;
  batch.null_prediction = [&model, &rows, null](const at::Tensor& which) {
    at::NoGradGuard no_grad;
    return model.predict(rows.noisy.index_select(0, which), rows.timestep.index_select(0, which),
                         rows.condition.select(which).uncaptioned(null));
  };
  return batch;
}

}  // namespace memsieve::trainer
