#pragma once
// The device side of the sieve: signals, scores, replicated statistics. Private to the library.
//
// Everything here is tensor arithmetic without host synchronisation. `measure` reads the state, `fold` alone changes
// it, and only from gathered records in global order: so every rank holds the same state (law 4).

#include "judge/decision.h"
#include "judge/evidence.h"
#include "config/options.h"
#include "record/record.h"
#include "judge/reference.h"
#include "judge/window.h"

namespace memsieve {

struct Measured {
  /// [B, RecordShape::width()] float64
  at::Tensor lines;
  /// [B] float32
  at::Tensor weight;
};

/// Per-channel scores of rows, before standardisation, and what they were made from.
struct RawScores {
  /// [B, C] float32, NaN = not measured
  at::Tensor raw;
  /// [B] float32
  at::Tensor timestep;
  /// [B] bool
  at::Tensor captioned;
  /// [B] bool
  at::Tensor probed;
  /// [B] bool
  at::Tensor nonfinite;
  int64_t elements = 0;
};

class Engine {
 public:
  Engine(const SieveOptions& options, const Setup& setup, int64_t ranks);

  /// `ids` [B] int64 on the device: samples, or pseudo-rows of held-out pictures.
  Measured measure(const Batch& batch, const at::Tensor& ids, bool held_out, int64_t step) const;
  /// Scores under the starting model: every row is probed, nothing is standardised.
  RawScores score_all(const Batch& batch) const;
  void set_reference(const at::Tensor& picture, const at::Tensor& timestep, const at::Tensor& raw,
                     const at::Tensor& held_out);
  /// Of step `step`, which says whether held-out rows are among them.
  void fold(const Gathered& gathered, int64_t step);

  int64_t pseudo_rows() const { return pseudo_rows_; }
  /// Whether held-out rows are observed in step `step`.
  bool observes(int64_t step) const { return options_.held_out_rows > 0 && step % options_.held_out_every == 0; }
  /// Why this configuration will never drop anything with a data set of this size, a line each.
  std::vector<std::string> warnings() const;
  at::Tensor bin_of(const at::Tensor& timestep) const;
  /// Every tensor of the state, by name.
  std::vector<std::pair<std::string, at::Tensor*>> state();
  /// To be called after the state's tensors were overwritten.
  void restored();

 private:
  /// What is known of rows before their visit.
  struct Prior {
    bool held_out = false;
    at::Tensor slot, picture, windows, counts, flagged;
  };
  Prior prior(const at::Tensor& ids, bool held_out) const;
  /// `prior` of the rows, or null before training, when every row that can be measured is.
  RawScores raw_scores(const Batch& batch, const Prior* prior) const;
  /// The filters that need the magnitude, or those that do not.
  void score_channels(const SignalView& view, bool with_magnitude, RawScores& scores) const;
  /// Measures the magnitude of rows `chosen` [k] and has it scored.
  void probe(const Batch& batch, const at::Tensor& prediction, const at::Tensor& chosen, SignalView& view,
             RawScores& scores) const;
  at::Tensor rows_to_probe(const RawScores& scores, const Prior* prior) const;
  at::Tensor standardise(const RawScores& scores) const;
  /// The same minus what the starting model explains of pictures [B].
  at::Tensor adjusted(const RawScores& scores, const at::Tensor& picture) const;
  at::Tensor slots(const at::Tensor& ids) const;
  /// Held-out pictures come after the samples.
  at::Tensor picture_of(const at::Tensor& pseudo_rows) const;
  int64_t block(int64_t rows) const;
  /// Raw scores [R, C] of timesteps [R], where valid [R], into the rings of their bins.
  void fold_scores(const at::Tensor& timestep, const at::Tensor& raw, const at::Tensor& valid);
  void fold_population(const at::Tensor& lines, const at::Tensor& picture, const at::Tensor& valid);
  /// Visits [R, width] of slots [R], training rows' and held-out rows'.
  void fold_evidence(const at::Tensor& lines, const at::Tensor& slot);
  void fold_probes(const at::Tensor& lines, const at::Tensor& slot);
  /// Visits of training rows alone.
  void fold_verdicts(const at::Tensor& lines, const at::Tensor& slot);
  void fold_training_scores(const at::Tensor& lines);
  void refresh_statistics();
  void refresh_levels();

  const SieveOptions& options_;
  at::Device device_;
  int64_t dataset_size_, held_out_size_, num_timesteps_, pseudo_rows_ = 0, slot_count_;
  /// [dataset_size] when samples share slots
  at::Tensor slot_of_;
  at::Tensor channel_weight_;

  /// [channels * bins, window, 1]
  Rings scores_;
  /// [slots + pseudo-rows, visits, channels]
  Rings windows_;
  /// [1, threshold window, 1]: evidence of recent training visits
  Rings training_;
  /// [slots + 1] bool
  at::Tensor flagged_;
  /// [slots + pseudo-rows + 1] float32: visits since the last probe
  at::Tensor unprobed_;
  Reference reference_;
  /// [2, channels, bins] of scores_; NaN = too few of them
  at::Tensor location_and_scale_;
  /// [2] drop and release, as held_out_levels or training_levels want them
  at::Tensor wanted_levels_;
  Levels levels_;
};

}  // namespace memsieve
