#pragma once
// The device side of the sieve: signals, scores, replicated statistics. Private to the library.
//
// Everything here is tensor arithmetic without host synchronisation. `measure` reads the state, `fold` alone
// changes it, and only from gathered records in global order: so every rank holds the same state (law 4).

#include "decision.h"
#include "evidence.h"
#include "options.h"
#include "record.h"
#include "reference.h"
#include "window.h"

namespace memsieve {

struct Measured {
  at::Tensor lines;   ///< [B, RecordShape::width()] float64
  at::Tensor weight;  ///< [B] float32
};

/// Per-channel scores of rows, before standardisation, and what they were made from.
struct RawScores {
  at::Tensor raw;        ///< [B, C] float32, NaN = not measured
  at::Tensor timestep;   ///< [B] float32
  at::Tensor captioned;  ///< [B] bool
  at::Tensor probed;     ///< [B] bool
  at::Tensor nonfinite;  ///< [B] bool
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
  void fold(const Gathered& gathered);

  int64_t pseudo_rows() const { return pseudo_rows_; }
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
  at::Tensor rows_to_probe(const RawScores& scores, const Prior* prior) const;
  at::Tensor standardise(const RawScores& scores) const;
  at::Tensor slots(const at::Tensor& ids) const;
  int64_t block(int64_t rows) const;
  void fold_population(const at::Tensor& lines, const at::Tensor& picture, const at::Tensor& valid);
  void fold_evidence(const Gathered& gathered);
  void fold_verdicts(const at::Tensor& lines);
  void refresh();

  const SieveOptions& options_;
  at::Device device_;
  int64_t dataset_size_, held_out_size_, num_timesteps_, pseudo_rows_ = 0, slot_count_;
  at::Tensor slot_of_;  ///< [dataset_size] when samples share slots
  at::Tensor channel_weight_;

  Rings scores_;         ///< [channels * bins, window, 1]
  Rings windows_;        ///< [slots + pseudo-rows, visits, channels]
  Rings training_;       ///< [1, threshold window, 1]: evidence of recent training visits
  at::Tensor flagged_;   ///< [slots + 1] bool
  at::Tensor unprobed_;  ///< [slots + 1] float32: visits since the last probe
  Reference reference_;
  Robust stats_;  ///< of scores_, refreshed after each fold
  Levels levels_;
};

}  // namespace memsieve
