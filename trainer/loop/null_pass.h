#pragma once
// The model's answers to the empty caption, and what rides along with them.

#include <diffusion/data/rows.h>
#include <diffusion/models/model.h>
#include <memsieve/batch.h>
#include <trainer/rooms.h>

#include <optional>

namespace memsieve::trainer {

/// What the sieve wants to know of rows that the model has answered with `prediction`, but for the null prediction.
Batch batch_of(const NoisyRows& rows, const at::Tensor& prediction);

/// Makes null predictions, without gradient. Held-out rows that wait for the model's answer to their captions share the
/// forward of the first of them: a small pass costs more per row than a large one.
class NullPass {
 public:
  /// `model` must outlive it.
  explicit NullPass(Model& model) : model_(model) {}

  /// For Batch::null_prediction of `rows`, whose empty caption is `null`. This pass must outlive it.
  NullPrediction of(const NoisyRows& rows, const Conditioning& null);

  /// From now on `rows` wait for their prediction; what waited before is forgotten.
  void await(NoisyRows rows);
  /// Nothing waits.
  void forget() { waiting_.reset(); }
  /// The prediction for the rows that await() was last told, with their captions; made now if no null prediction was
  /// asked for since.
  const at::Tensor& awaited();

 private:
  at::Tensor predict(const NoisyRows& rows, const Conditioning& null, const at::Tensor& which);

  struct Waiting {
    NoisyRows rows;
    /// undefined until it is made
    at::Tensor prediction;
  };
  Model& model_;
  std::optional<Waiting> waiting_;
};

}  // namespace memsieve::trainer
