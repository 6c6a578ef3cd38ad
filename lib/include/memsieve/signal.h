#pragma once
// Signals: what can be measured of a row, by name. Filters read them (memsieve/filter.h).

#include <ATen/core/Tensor.h>
#include <memsieve/export.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace memsieve {

/// The k rows that a signal is asked about. Everything is detached and on the training device.
struct SignalRows {
  /// [k] float32 in [0, num_timesteps)
  at::Tensor timestep;
  /// [k, C, ...] float32: with the caption
  at::Tensor prediction;
  /// like prediction
  at::Tensor target;
  /// like prediction: the entry's counterfactual prediction; undefined if it names none
  at::Tensor counterfactual;
};

/// A signal as the registry knows it.
struct SignalEntry {
  std::string name;
  std::string doc;
  /// The prediction that must be made for it without gradient, one row for each probed row: `null` = with the empty
  /// caption, `start` = by the starting model, `guidance` = at another embedded guidance scale, or a name of one's own
  /// (Batch::counterfactuals). "" = none is needed: the signal is a by-product of the row's own loss and is measured
  /// for every row.
  std::string counterfactual;
  /// [k] float32 on the rows' device; a NaN or Inf counts as a broken row. Pure, may be called from several threads at
  /// once, must not synchronise with the device (`.item()`, `.cpu()`, boolean indexing). May throw: the error reaches
  /// every rank, naming the one it came from.
  std::function<at::Tensor(const SignalRows& rows)> measure;
  /// a Euclidean norm over C,H,W, which `standardise.by: rms` may divide by sqrt(C*H*W)
  bool is_norm = false;
};

/// The signals that a filter may read.
class MEMSIEVE_API SignalRegistry {
 public:
  /// Throws ConfigError if the name is empty or taken, or without `measure`.
  void add(SignalEntry entry);
  /// Null if there is none of that name.
  const SignalEntry* find(const std::string& name) const;
  const std::vector<SignalEntry>& entries() const { return entries_; }
  /// "prediction_error, magnitude"
  std::string names() const;

 private:
  std::vector<SignalEntry> entries_;
};

/// With L the mean over C,H,W of (prediction - target)^2, and L(x) that of counterfactual prediction x:
/// `prediction_error`: L, which costs nothing
/// `magnitude`: || prediction - prediction(null) ||_2 over C,H,W (Wen et al., ICLR 2024, section 3.1)
/// `start_gap`: ln L(start) - ln L (reference-model membership inference, Carlini et al., arXiv 2112.03570)
/// `caption_gain`: ln L(null) - ln L (CLiD, Zhai et al., arXiv 2405.14800)
/// `guidance_gap`: || prediction - prediction(guidance) ||_2 over C,H,W, for guidance-distilled models
MEMSIEVE_API SignalRegistry builtin_signals();

}  // namespace memsieve
