#pragma once
// From a batch to raw scores: signals are measured, filters score them. Private to the library.
//
// Tensor arithmetic without host synchronisation, and without any state.

#include <memsieve/batch.h>

#include <functional>
#include <set>
#include <string>
#include <vector>

#include "signals/channel.h"
#include "signals/raw_scores.h"

namespace memsieve {

/// Rows [k] int64 to probe, given the scores that cost nothing and which rows a counterfactual signal would count for
/// [B] bool.
using ChooseRows = std::function<at::Tensor(const RawScores& free, const at::Tensor& eligible)>;

class Signals {
 public:
  /// `likeness`: whether rows' features are asked for.
  Signals(std::vector<Channel> channels, const SignalRegistry& registry, at::Device device, bool likeness = false);

  /// `choose` is called once, and only if some filter reads a counterfactual signal. Throws DataError for a
  /// counterfactual prediction that is missing or of another shape, and what filters and signals throw. Names of the
  /// predictions that were asked for are added to `asked`.
  RawScores measure(const Batch& batch, const ChooseRows& choose, std::set<std::string>& asked) const;
  /// Asks for the others, of the first row `rows` times over. What they predict or throw is ignored.
  void ask_rest(const Batch& batch, int64_t rows, const std::set<std::string>& asked) const;
  /// [B, kLikenessWidth] float32: the rows' features; undefined = nobody asks, or the loop does not say.
  at::Tensor likeness(const Batch& batch) const;
  const std::vector<Channel>& channels() const { return channels_; }
  /// Names of the predictions that `measure` may ask a batch for.
  std::vector<std::string> counterfactuals() const;

 private:
  /// Throws DataError for a counterfactual prediction that the batch lacks.
  void require_predictions(const Batch& batch) const;
  /// What the batch says of its rows, nothing measured.
  RawScores unmeasured(const Batch& batch, const SignalRows& rows) const;
  at::Tensor measured(const SignalEntry& signal, const SignalRows& rows) const;
  void measure_free(const SignalRows& rows, SignalView& view, RawScores& scores) const;
  void measure_counterfactual(const Batch& batch, const SignalRows& rows, const at::Tensor& chosen, SignalView& view,
                              RawScores& scores, std::set<std::string>& asked) const;
  /// The filters that read a counterfactual signal, or those that do not.
  void score_channels(const SignalView& view, bool counterfactual, RawScores& scores) const;
  std::string who_reads(const SignalEntry& signal) const;

  std::vector<Channel> channels_;
  /// those that some filter reads, and the prediction error, in the registry's order
  std::vector<SignalEntry> free_, counterfactual_;
  at::Device device_;
  bool likeness_;
  /// lowest timestep at which some filter looks at a counterfactual signal
  double timestep_min_;
};

}  // namespace memsieve
