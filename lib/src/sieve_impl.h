#pragma once
// What a Sieve is made of. Private to the library.

#include <memsieve/error.h>
#include <memsieve/sieve.h>

#include <exception>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "config/configuration.h"
#include "judge/flags.h"
#include "judge/judge.h"
#include "record/record.h"
#include "record/reporter.h"
#include "signals/signals.h"

namespace memsieve {

struct Sieve::Impl {
  Impl(const Settings& settings, std::shared_ptr<Communicator> comm, const Setup& given);
  Impl(Configuration configuration, const std::string& yaml, std::shared_ptr<Communicator> comm, const Setup& given);

  /// COLLECTIVE. Built from what `prepare` (-> {Settings, Setup}) makes of this rank's files, once all ranks have
  /// agreed on it. An error on the way reaches the other ranks too, so that none waits for one that cannot start.
  template <typename Prepare>
  static std::unique_ptr<Impl> agreed(const std::shared_ptr<Communicator>& comm, at::Device device, Prepare prepare);

  Setup setup;
  std::shared_ptr<Communicator> communicator;
  RecordOptions options;
  int64_t ranks;
  RecordShape shape;
  Flags flags;
  Signals signals;
  Judge judge;
  RecordBuilder record;
  Reporter reporter;
  int64_t micro = 0, held_out_seen = 0;
  /// samples that were passed over in this step
  std::vector<int64_t> passed_over;
  /// of each micro-batch's per-sample loss
  std::vector<std::shared_ptr<Plan::Seen>> seen;
  /// bool []: an error or a value that ends the run turned up in some step
  at::Tensor halted;
  /// lines of the reference pass: picture, held out, timestep, stratum, raw...
  std::vector<at::Tensor> draws;
  bool reference_known = false;
  /// a step with a batch has ended; some batch had features that Batch::likeness is for
  bool inspected = false, likeness_given = false;

  /// The counterfactual predictions that a call asks for: of how many rows, 0 = none, and which it has asked for.
  struct Asking {
    int64_t rows = 0;
    std::set<std::string> done;
  };
  /// Of how many rows any rank's call asks in step `step` that takes up to `most` rows: of as many as the batch has, or
  /// of `most` if it has none or more.
  int64_t rows_to_ask(const Batch& batch, int64_t most, bool held_out, int64_t step) const;
  /// Carries an error of a call, then asks for the predictions that it did not come to: the passes of a sharded model
  /// are collectives, which the other ranks wait in.
  void fail_asking(const Batch& batch, const Asking& asking, const std::string& where = "");

  /// Throws DataError for a batch that breaks the contract of memsieve/batch.h; returns its rows.
  int64_t check_batch(const Batch& batch, int64_t most) const;
  void check_stratum(const Batch& batch, int64_t rows) const;
  /// Its ids, each in [0, limit), on the device.
  at::Tensor device_ids(const Batch& batch, int64_t limit) const;
  /// Measures and judges rows `ids`; returns their record and weights.
  struct Judged {
    at::Tensor lines, weight;
  };
  Judged judged(const Batch& batch, const at::Tensor& ids, const Past& past, int64_t step, Asking& asking) const;
  /// Of the rows that held_out_visits() names to this rank, the first so many count; others fill up.
  int64_t own_held_out() const;
  /// What this rank's looks of step `step` are: as many as any other's.
  std::vector<Flags::Planned> own_looks(int64_t step) const;
  /// Notes that step `step` ends, before its records arrive.
  void end_looks(int64_t step);
  /// Carries an error to the step's record: all ranks throw it at the end of the step.
  void fail(const std::exception_ptr& error, const std::string& where = "");
  void carry_losses();
  void carry_gradients(at::TensorList gradients);
  void carry_ledger_errors();
};

[[noreturn]] inline void bad_batch(const std::string& what) {
  throw DataError("batch: " + what);
}

}  // namespace memsieve
