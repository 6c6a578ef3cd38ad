#pragma once
// Between the loop's rows and the sieve's.

#include <diffusion/data/rows.h>
#include <memsieve/batch.h>
#include <trainer/loop/model.h>
#include <trainer/rooms.h>

namespace memsieve::trainer {

/// What the sieve wants to know of rows that the model has answered with `prediction`. The batch keeps references: use
/// it at once.
Batch batch_of(Model& model, const NoisyRows& rows, const at::Tensor& prediction, const Conditioning& null);

}  // namespace memsieve::trainer
