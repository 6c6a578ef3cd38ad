#pragma once
// Which samples the next batches should pass over, and which of those to look at again. Private to the library.
//
// Lives on the host, of the records that the Reporter catches up with, and answers with a fixed lag: so it is the same
// on a CPU, on a GPU, on every rank and in a resumed run.

#include <memsieve/sieve.h>

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "judge/judge.h"
#include "record/record.h"

namespace memsieve {

class Flags {
 public:
  /// Keeps nothing and flags nobody without `options.action.pass_over`.
  Flags(const JudgeOptions& options, const Setup& setup);

  /// The records of step `step`, in the order of steps, arrived on the host.
  void add(int64_t step, const Gathered& host);
  /// Step `step` has ended, and with it the looks that were planned for it. To be called before its records are added.
  void ended(int64_t step);

  /// [dataset_size] bool
  at::Tensor flagged(int64_t step) const;
  /// A look, and whether anything is kept of it.
  struct Planned {
    Look look;
    bool counted = false;
  };
  /// Of step `step`, over all ranks, by place.
  const std::vector<Planned>& looks(int64_t step) const;
  /// A look at place `place` of which nothing is kept.
  Planned filler(int64_t step, int64_t place) const;

  /// Named CPU tensors; none without `action.pass_over`.
  std::map<std::string, at::Tensor> state() const;
  /// Throws DataError for a state that lacks them or is of another data set.
  void restore(const std::map<std::string, at::Tensor>& state);

 private:
  struct Visit {
    int64_t step, slot, flagged;
    /// how long a look can wait: 1 + the evidence beyond the level that was in force, and longer for samples that are
    /// judged together, of which any is looked at for all
    double patience;
  };
  /// Of each slot: the last verdict and what it rested on, and the step of its last visit or look.
  struct Table {
    std::vector<uint8_t> flagged;
    std::vector<double> patience;
    std::vector<int64_t> seen;
    void apply(const Visit& visit);
  };
  /// Throws DataError unless step `step` can be told alike wherever the loop runs.
  void check_step(const char* call, int64_t step) const;
  std::vector<Planned> plan_looks(int64_t step) const;
  /// As known for step `step`.
  Table table_for(int64_t step) const;
  int64_t slot_of(int64_t sample) const { return slot_of_.empty() ? sample : slot_of_[sample]; }
  /// One of the samples of a slot; in later steps others.
  int64_t sample_of(int64_t slot, int64_t step) const;

  bool on_;
  int64_t samples_, slots_, warmup_steps_;
  RevisitOptions revisit_;
  /// [dataset_size] when samples share slots
  std::vector<int64_t> slot_of_;
  /// then each slot's samples
  std::vector<std::vector<int64_t>> members_;
  /// what every later step may know, and what came after
  Table settled_;
  std::deque<Visit> recent_;
  /// the last steps that ended
  std::optional<int64_t> last_, before_last_;
  /// what looks() planned last, and for which step
  mutable std::vector<Planned> planned_;
  mutable std::optional<int64_t> planned_step_;
};

}  // namespace memsieve
