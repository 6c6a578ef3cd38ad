#pragma once
// From raw scores to weights. Private to the library.
//
// Knows no model, no filter and no ledger: it can be given recorded scores as well. Everything here is tensor
// arithmetic without host synchronisation. `fold` alone changes the state, and only from gathered records in global
// order: so every rank holds the same state (law 4).

#include "judge/action.h"
#include "judge/evidence.h"
#include "judge/held_out.h"
#include "judge/likeness.h"
#include "judge/probe.h"
#include "judge/reference.h"
#include "judge/revisit.h"
#include "judge/slots.h"
#include "judge/standardise.h"
#include "judge/threshold.h"
#include "record/record.h"
#include "signals/raw_scores.h"

namespace memsieve {

/// Each stage's options.
struct JudgeOptions {
  /// of each channel
  std::vector<float> weights;
  StandardiseOptions standardise;
  ReferenceOptions reference;
  EvidenceOptions evidence;
  ThresholdOptions threshold;
  ActionOptions action;
  ProbeOptions probe;
  HeldOutOptions held_out;
  RevisitOptions revisit;
  /// rows that budget and cap are counted over, 0 = all of a micro-batch
  int64_t block_rows = 0;

  /// Throws ConfigError naming the key for combinations that cannot work.
  static JudgeOptions read(const Settings& sieve, const Setup& setup, const std::vector<Channel>& channels);
};

/// What is known of rows before their visit.
struct Past {
  bool held_out = false;
  at::Tensor slot, picture, flagged;
  Evidence::Past evidence;
  /// [B, kLikenessWidth]; undefined = none
  at::Tensor likeness;
  /// of training rows
  Neighbours neighbours;
  /// training samples that are only looked at: all are probed, none has a weight
  bool look = false;
};

class Judge {
 public:
  Judge(const JudgeOptions& options, const Setup& setup, int64_t ranks);

  /// `ids` [B] int64 on the device: pseudo-rows of held-out pictures.
  Past recall_held_out(const at::Tensor& ids) const;
  /// Of training samples `ids`; `likeness` [B, kLikenessWidth] are their features, undefined = none.
  Past recall(const at::Tensor& ids, const at::Tensor& likeness) const;
  /// The same of samples that are only looked at.
  Past recall_look(const at::Tensor& ids, const at::Tensor& likeness) const;
  /// Rows [k] to probe in step `step`, going by the scores that cost nothing; k depends on it and on shapes alone.
  at::Tensor rows_to_probe(const Past& past, const RawScores& free, const at::Tensor& eligible, int64_t step) const;
  /// k for so many rows, all held out or all for training.
  int64_t probe_count(int64_t rows, bool held_out, int64_t step) const;
  Verdicts judge(const Past& past, const RawScores& scores, int64_t step) const;
  /// What the starting model's raw scores [R, C] of pictures [R] say, `held_out` [R] bool. May synchronise.
  void set_reference(const at::Tensor& picture, const RawScores& scores, const at::Tensor& held_out);
  /// Of step `step`, which says whether held-out rows are among them.
  void fold(const Gathered& gathered, int64_t step);

  /// 0-dim float32: how far the training set as a whole lies above its population, in z-scores of a visit; of the
  /// channels the largest. 0 with other evidence than `discounted`.
  at::Tensor drift() const { return evidence_.drift().max(); }

  const JudgeOptions& options() const { return options_; }
  int64_t pseudo_rows() const { return slots_.pseudo_rows(); }
  /// Why this configuration will never drop anything, or no sample for what it shows by itself, with a data set of this
  /// size, a line each.
  std::vector<std::string> warnings() const;
  /// Every tensor of the state.
  State state();
  /// To be called after the state's tensors were overwritten.
  void restored();

 private:
  std::vector<std::string> rate_warnings() const;
  Past recall_slots(const at::Tensor& ids, bool held_out) const;
  bool probes_all(bool held_out) const;
  int64_t block(int64_t rows) const { return options_.block_rows > 0 ? options_.block_rows : rows; }
  /// z [B, C]: standardised, less what the starting model explains.
  at::Tensor adjusted(const RawScores& scores, const at::Tensor& picture) const;
  void fold_population(const LineView& line, const at::Tensor& picture, const at::Tensor& valid);
  /// [R] bool: training rows of the population that z-scores are relative to: with `discounted` evidence those without
  /// copies, flagged or not; with other evidence those that are not flagged.
  at::Tensor population_of(const LineView& training) const;
  void refresh_levels();
  /// `visits`: the training rows and, behind them, the looks of this step.
  void fold_discounted(const LineView& training, const LineView& visits, bool observed);

  JudgeOptions options_;
  int64_t held_out_size_;
  Slots slots_;
  Standardise standardise_;
  Reference reference_;
  Evidence evidence_;
  Threshold threshold_;
  Probe probe_;
  Likeness likeness_;
};

}  // namespace memsieve
