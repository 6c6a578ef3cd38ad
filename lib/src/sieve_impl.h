#pragma once
// What a Sieve is made of. Private to the library.

#include <memsieve/error.h>
#include <memsieve/sieve.h>

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "judge/engine.h"
#include "record/record.h"
#include "record/reporter.h"

namespace memsieve {

struct Sieve::Impl {
  Impl(const Settings& settings, std::shared_ptr<Communicator> comm, const Setup& given);

  /// COLLECTIVE. Built from what `prepare` (-> {Settings, Setup}) makes of this rank's files, once all ranks have
  /// agreed on it. An error on the way reaches the other ranks too, so that none waits for one that cannot start.
  template <typename Prepare>
  static std::unique_ptr<Impl> agreed(const std::shared_ptr<Communicator>& comm, at::Device device, Prepare prepare);

  Setup setup;
  std::shared_ptr<Communicator> communicator;
  SieveOptions options;
  int64_t ranks;
  RecordShape shape;
  Engine engine;
  RecordBuilder record;
  Reporter reporter;
  int64_t micro = 0, held_out_seen = 0;
  /// of each micro-batch's per-sample loss
  std::vector<std::shared_ptr<at::Tensor>> nonfinite;
  /// bool []: an error or a value that ends the run turned up in some step
  at::Tensor halted;
  /// lines of the reference pass: picture, held out, timestep, raw...
  std::vector<at::Tensor> draws;
  bool reference_known = false;

  /// Throws DataError for a batch that breaks the contract of memsieve/batch.h; returns its rows.
  int64_t check_batch(const Batch& batch, int64_t most) const;
  /// Its ids, each in [0, limit), on the device.
  at::Tensor device_ids(const Batch& batch, int64_t limit) const;
  /// Carries the error being handled to the step's record: all ranks throw it at the end of the step.
  void fail(const std::exception& error, const std::string& where = "");
  void carry_ledger_errors();
};

[[noreturn]] inline void bad_batch(const std::string& what) {
  throw DataError("batch: " + what);
}

}  // namespace memsieve
