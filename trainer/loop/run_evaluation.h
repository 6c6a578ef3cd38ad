#pragma once
// What a run looks at from time to time: its validation loss, and pictures that it draws into its folder.

#include <trainer/checkpoint/run_folder.h>
#include <trainer/loop/evaluate.h>
#include <trainer/metrics/metrics.h>
#include <trainer/optim/ema.h>
#include <trainer/trainer_rooms.h>

#include <functional>

namespace memsieve::trainer {

struct EvaluationOptions {
  /// steps between validations, and between drawings; 0 = never
  int64_t validate_every = 0, draw_every = 0;
  ValidationOptions validation;
  DrawOptions draw;
};

/// What is looked at; all of it must outlive the evaluation. `validation`, `prompts` and `pictures` may be null where
/// they are not asked for; `ema` is null without an average, which is looked at in place of the model if it is there.
struct EvaluationParts {
  Model& model;
  Ema* ema;
  const RowMaker* validation;
  const Dataset* prompts;
  PictureDecoder* pictures;
  const NoiseSchedule& schedule;
  const RunFolder& folder;
  MetricsWriter& metrics;
  Group& group;
};

/// Whether something that happens every `every` steps (0 = never) happens after `step` steps.
inline bool due(int64_t every, int64_t step) {
  return every > 0 && step % every == 0;
}

class RunEvaluation {
 public:
  RunEvaluation(const EvaluationOptions& options, const EvaluationParts& parts) : options_(options), parts_(parts) {}

  /// Whether `run` would do anything after `step` steps. `end`: after the last one everything is due that is ever done.
  bool is_due(int64_t step, bool end) const { return validates(step, end) || draws(step, end); }
  /// COLLECTIVE. Validates and draws what is due, into metrics.jsonl and samples/. `before_log` is called before a line
  /// is logged. Throws DataError on all ranks.
  void run(int64_t step, bool end, const std::function<void()>& before_log) const;

 private:
  bool validates(int64_t step, bool end) const {
    return options_.validate_every > 0 && (end || due(options_.validate_every, step));
  }
  bool draws(int64_t step, bool end) const {
    return options_.draw_every > 0 && (end || due(options_.draw_every, step));
  }
  void draw(int64_t step) const;
  void write_captions() const;

  EvaluationOptions options_;
  EvaluationParts parts_;
};

}  // namespace memsieve::trainer
