#pragma once
// Filters: pure functions from signals to one score per row, higher = more memorised.

#include <ATen/core/Tensor.h>
#include <memsieve/export.h>
#include <memsieve/schema.h>
#include <memsieve/signal.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace memsieve {

/// What a filter is shown: B rows of one micro-batch, all tensors [B] float32 on the training device.
struct MEMSIEVE_API SignalView {
  /// in [0, num_timesteps)
  at::Tensor timestep;
  /// the signal of that name: mean over C,H,W of (prediction - target)^2; always there
  at::Tensor prediction_error;
  /// the signal of that name: || prediction(e) - prediction(null) ||_2 over C,H,W; NaN where the row was not probed,
  /// and everywhere if no configured filter names it
  at::Tensor magnitude;
  /// C*H*W of one row
  int64_t elements = 0;
  /// every signal that was measured, by name
  std::map<std::string, at::Tensor> signals = {};

  /// A signal that the filter names in its needs; NaN where it needs a counterfactual prediction and the row was not
  /// probed. Throws Error for another one.
  const at::Tensor& signal(const std::string& name) const;
};

/// What a filter reads.
struct Needs {
  /// Names of registered signals. A signal with a counterfactual costs one row of a no-gradient forward for each probed
  /// row, however many signals and filters share the prediction.
  std::vector<std::string> signals = {};
  /// rows below this timestep carry no signal for this filter and are not scored
  double timestep_min = 0;
};

/// A filter holds its options and nothing else: no state, no communicator, no reference to a batch (law 6). `score`
/// may be called from several threads at once. It must not synchronise with the device (`.item()`, `.cpu()`,
/// boolean indexing).
class MEMSIEVE_API Filter {
 public:
  virtual ~Filter() = default;
  virtual Needs needs() const = 0;
  /// [B] float32 on the view's device, higher = more memorised, NaN = no opinion on this row. May throw: the error
  /// reaches every rank, naming the one it came from.
  virtual at::Tensor score(const SignalView& view) const = 0;
};

/// A filter as the registry knows it. `name` is its file name and its YAML key.
struct FilterEntry {
  std::string name;
  std::string doc;
  Schema options;
  std::function<std::unique_ptr<Filter>(const Settings& options)> make;
};

/// The filters that a configuration may name, and the signals that they may read.
class MEMSIEVE_API FilterRegistry {
 public:
  /// Throws ConfigError if the name is taken or no YAML key, or for an option `weight`, which every filter has.
  void add(FilterEntry entry);
  /// Null if there is none of that name.
  const FilterEntry* find(const std::string& name) const;
  const std::vector<FilterEntry>& entries() const { return entries_; }
  /// The built-in ones from the start; a plug-in adds its own.
  SignalRegistry& signals() { return signals_; }
  const SignalRegistry& signals() const { return signals_; }

 private:
  SignalRegistry signals_ = builtin_signals();
  std::vector<FilterEntry> entries_;
};

}  // namespace memsieve
