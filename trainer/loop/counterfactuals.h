#pragma once
// What would be predicted if one thing were different, and what rides along: predictions without gradient.

#include <diffusion/data/rows.h>
#include <diffusion/models/model.h>
#include <memsieve/batch.h>
#include <trainer/loop/starting_model.h>
#include <trainer/trainer_rooms.h>

#include <map>
#include <optional>
#include <string>

namespace memsieve::trainer {

/// What the sieve wants to know of rows that the model has answered with `prediction`, but for counterfactuals.
Batch batch_of(const NoisyRows& rows, const at::Tensor& prediction);

/// The parts of rows that a model is asked with.
struct Question {
  at::Tensor noisy, timestep;
  Conditioning condition;
};

/// Makes predictions with the empty caption (`null`) and by the starting model (`start`). Held-out rows and looks that
/// wait for answers share the forwards of the first micro-batch, and each other's: a small pass costs more per row than
/// a large one.
class Counterfactuals {
 public:
  /// `start`: null = none can be asked. Both must outlive it.
  Counterfactuals(Model& model, StartingModel* start) : model_(model), start_(start) {}

  /// For Batch::counterfactuals of `rows`, whose empty caption is `null`. This must outlive them.
  std::map<std::string, Counterfactual> of(const NoisyRows& rows, const Conditioning& null);
  /// The same for the rows that wait: answers that they have already are not made again. To be asked for after
  /// awaited(), first for the held-out rows, with whose null prediction that of all looks is made: in one forward.
  std::map<std::string, Counterfactual> of_held_out(const Conditioning& null, const Conditioning& null_of_looks);
  std::map<std::string, Counterfactual> of_looks(const Conditioning& null);

  /// From now on these rows wait for their prediction, at least one of the two; what waited before is forgotten.
  void await(const std::optional<NoisyRows>& held_out, const std::optional<NoisyRows>& looks);
  /// Nothing waits.
  void forget() { waiting_.reset(); }
  /// The prediction for the rows that await() was last told, with their captions, looks after held-out rows; made now
  /// if no null prediction was asked for since.
  const at::Tensor& awaited();

 private:
  at::Tensor null(const Question& rows, const Conditioning& null, const at::Tensor& which);
  at::Tensor start(const Question& rows, const at::Tensor& which);
  at::Tensor null_of_held_out(const Conditioning& null, const Conditioning& null_of_looks, const at::Tensor& which);
  at::Tensor null_of_looks(const Conditioning& null, const at::Tensor& which);
  at::Tensor start_of_waiting(int64_t first, const at::Tensor& which);
  at::Tensor ask_model(const Question& question);

  struct Waiting {
    /// the looks come last
    Question rows;
    int64_t held_out;
    /// by the model and by the starting model; undefined until they are made
    at::Tensor prediction, start;
    /// of the looks alone; undefined until it is made
    at::Tensor looks_null;
  };
  Model& model_;
  StartingModel* start_;
  std::optional<Waiting> waiting_;
};

}  // namespace memsieve::trainer
