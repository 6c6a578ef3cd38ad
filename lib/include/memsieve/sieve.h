#pragma once
// The sieve: batch -> signals -> score -> standardise -> evidence -> decision -> weights -> ledger.

#include <c10/core/Device.h>
#include <memsieve/batch.h>
#include <memsieve/communicator.h>
#include <memsieve/export.h>
#include <memsieve/filter.h>

#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace memsieve {

/// What the sieve must know about the loop. The same on every rank.
struct Setup {
  /// usually memsieve::builtin_filters()
  FilterRegistry filters;
  /// samples in the training set; sample ids lie in [0, dataset_size)
  int64_t dataset_size = 0;
  /// rows of one micro-batch on one rank; smaller ones are fine, larger ones an error
  int64_t rows_per_micro_batch = 0;
  /// micro-batches in one optimiser step (gradient accumulation)
  int64_t micro_batches = 1;
  /// timesteps lie in [0, num_timesteps)
  int64_t num_timesteps = 1000;
  /// pictures kept out of training, 0 = none
  int64_t held_out_size = 0;
  /// [dataset_size] copies of one image share an id; empty = every sample its own
  std::vector<int64_t> group_id;
  /// where predictions live
  c10::Device device = c10::kCPU;
  /// written to the ledger
  std::string run_id;
  /// HDF5 file to write (rank 0 alone), "" = none
  std::string ledger_path;
  /// "sieve.threshold.drop=0.05" and the like
  std::vector<std::string> overrides;
  /// kinds of rows that are compared each with its own: Batch::stratum lies in [0, strata)
  int64_t strata = 1;
  /// How many samples there are where ids leave gaps in [0, dataset_size), as hashes of names do: 1 to dataset_size;
  /// unset = dataset_size. Held-out rows come as often as one sample in so many, and shares of the set are of so many.
  std::optional<int64_t> samples = {};
};

/// What happened in one optimiser step, over all ranks; read on the host some steps later on a GPU, at once on a CPU.
struct StepReport {
  int64_t step = 0;
  /// training rows seen
  int64_t rows = 0;
  /// rows with weight 0
  int64_t dropped = 0;
  /// rows with a weight between 0 and 1
  int64_t downweighted = 0;
  /// rows whose magnitude was measured (held-out rows not counted)
  int64_t probed = 0;
  /// rows with a NaN or Inf, held-out rows among them
  int64_t nonfinite = 0;
  /// sum of the weights
  double weight = 0;
  /// over the rows that have a score; NaN if none
  double mean_score = 0;
  /// the threshold that was in force
  double drop_level = 0;
  /// of the training rows that have one
  std::vector<float> scores;
  /// Of each filter, in the order of Sieve::channels(): the training rows' scores before standardisation,
  /// where measured.
  std::vector<std::vector<float>> raw;
  /// the update was skipped on all ranks
  bool skipped = false;
  /// visits that the loop passed over (Sieve::pass_over)
  int64_t passed_over = 0;
  /// With `evidence.kind: discounted`: by how much the set as a whole is memorised, in z-scores of a visit (of several
  /// filters the largest); no sample is dropped for it. 0 with other kinds.
  double drift = 0;
};

/// Steps between a verdict and the first batch that `Sieve::flagged` keeps its sample out of: enough for what a GPU
/// tells two steps late, and for batches that are made five steps ahead.
inline constexpr int64_t kFlagLag = 8;

class MEMSIEVE_API Sieve {
 public:
  /// COLLECTIVE. Builds a sieve from the `sieve:` mapping of a YAML file. Every rank must pass the same configuration,
  /// setup and library build; otherwise all ranks throw ConfigError naming one that differs. Throws ConfigError for a
  /// bad file.
  static Sieve from_yaml(const std::string& path, const std::shared_ptr<Communicator>& communicator,
                         const Setup& setup);
  /// COLLECTIVE. The same from YAML text; `source` names it in messages.
  static Sieve from_text(const std::string& yaml, const std::string& source,
                         const std::shared_ptr<Communicator>& communicator, const Setup& setup);
  /// COLLECTIVE. The same from settings that were resolved against `schema` (the `sieve:` mapping itself), plug-ins
  /// loaded and overrides applied: `setup.overrides` and `sieve.plugins` are not looked at again.
  static Sieve from_settings(const Settings& sieve, const std::shared_ptr<Communicator>& communicator,
                             const Setup& setup);
  /// The schema of the `sieve:` mapping, given the filters that it may name.
  static Schema schema(const FilterRegistry& filters);

  Sieve(Sieve&&) noexcept;
  Sieve& operator=(Sieve&&) noexcept;
  ~Sieve();

  /// Local. Measures and judges one micro-batch. Whatever goes wrong here (a filter or the null prediction throws, the
  /// batch breaks the contract) is carried to end_step, which throws it on every rank; the rows then weigh 1 and the
  /// update is skipped.
  Plan inspect(const Batch& batch, const Clock& clock);

  /// The held-out rows that this rank should observe in this step: always the same number, on every rank, or none in
  /// the steps between those that `held_out.every` names. Pure.
  std::vector<HeldOutVisit> held_out_visits(int64_t step) const;
  /// Local. Measures held-out rows, in the order of held_out_visits(): what "not memorised" looks like now. Call under
  /// no-grad, before end_step.
  void observe(const Batch& batch, const Clock& clock);

  /// [dataset_size] bool on the CPU: samples that the batch of step `step` should pass over, those that the verdicts of
  /// steps up to `step` - kFlagLag judge memorised; with `evidence.pool: group` the whole group. The same on every
  /// rank, on CPU and GPU, and in a resumed run. None without `action.pass_over: true`, or before
  /// `action.warmup_steps`. Local; may be asked for the step to come and kFlagLag - 3 steps ahead. Throws DataError for
  /// another step, or for a clock that does not count steps one by one.
  at::Tensor flagged(int64_t step) const;
  /// Tells that in this step the visits of samples `ids` were passed over, in this order, the same on every rank: for
  /// the ledger and the report. Local, before end_step, which throws what is wrong with them on every rank.
  void pass_over(const std::vector<int64_t>& ids, const Clock& clock);
  /// The samples that this rank should look at again in the step to come, without training on them: always the same
  /// number, on every rank, or none in the steps between those that `revisit.every` names. Over all ranks the
  /// `revisit.rows` flagged ones that have waited longest for their last visit or look, divided by 1 + their evidence
  /// beyond the level. The same for any number of ranks. Throws as flagged() does.
  std::vector<Look> looks(int64_t step) const;
  /// Local. Measures the rows that looks() named, all of them, in its order, and adds what they show to the samples'
  /// evidence and verdicts: those whose evidence has fallen are taken back. Call under no-grad, before end_step; errors
  /// as in observe().
  void look(const Batch& batch, const Clock& clock);

  /// Local. Carries an error of the loop's own (of its data, say) to end_step, which throws it on every rank; the first
  /// of a step is what is thrown.
  void fail(const std::exception_ptr& error);

  /// How many draws of each picture the starting model should be asked for, 0 = none. Draw d uses timestep (d + 0.5) /
  /// draws * num_timesteps.
  int64_t reference_draws() const;
  /// Local, before training. What the starting model finds easy. Every training sample and every held-out picture
  /// (`held_out` = true, sample_id = picture index) once per draw, divided over the ranks in any way. False: something
  /// went wrong, and the pass need not go on (but of a sharded model, which the other ranks call); finish_reference
  /// throws it on every rank. Does nothing if the configuration asks for no reference. Each counterfactual prediction
  /// is asked for once for a batch, whatever its rows hold, but for `start`: the batch's own prediction is that.
  bool reference(const Batch& batch, bool held_out);
  /// COLLECTIVE. Ends the reference pass; does nothing if the configuration asks for none. Throws PeerError for what
  /// went wrong in it, DataError if a picture was never drawn.
  void finish_reference();
  bool has_reference() const;

  /// COLLECTIVE: one gather of fixed size. Once per optimiser step, after the last micro-batch's backward, with the
  /// same `clock.step` on every rank. Throws PeerError or NonFiniteError on every rank at the same step: at once on a
  /// CPU; on a GPU two steps later, that step's update and those between having been skipped on the device.
  /// Each step after such an error throws Error, and updates nothing.
  ///
  /// `gradients`: those that this rank is about to update with, reduced over the ranks or this rank's shard of them
  /// (any device that torch's foreach operators take; undefined ones do not count). A NaN or Inf in them, of finite
  /// losses, goes by `on_nonfinite` like any other. Left out, the sieve answers for losses and signals alone; leave
  /// them out where a loss scale waits for gradients to overflow.
  StepEnd end_step(const Clock& clock, at::TensorList gradients = {});

  /// Reports of the steps that the host has caught up with since the last call, oldest first; the newest 10 000
  /// are kept.
  std::vector<StepReport> take_reports();
  /// Waits for outstanding steps, hands out their errors as end_step would, and syncs the ledger to the disk (fsync):
  /// a checkpoint written after it finds the ledger's rows there even if the machine is lost. COLLECTIVE only in that
  /// every rank must call it at the same step. Throws DataError on rank 0 alone if the ledger cannot be written.
  void flush();

  /// Everything a resumed run needs, as named CPU tensors; identical on every rank. Call after flush().
  std::map<std::string, at::Tensor> state() const;
  /// Local, on every rank, before the first step. Throws DataError naming a tensor that is missing or has the wrong
  /// shape, if the state is of other filters, or if no ledger can be written (rank 0 alone). Rows of the ledger beyond
  /// the state's are cut off, in place, since the resumed run writes them anew: first give up the checkpoints that
  /// count on them. A ledger that has lost rows, or is gone, is no error: warnings() tells it on rank 0.
  void restore(const std::map<std::string, at::Tensor>& state);

  /// Names of the configured filters, in the order of the channels in the ledger: the registry's.
  std::vector<std::string> channels() const;
  /// Names of the counterfactual predictions that the configured filters read (SignalEntry::counterfactual): what a
  /// batch must be able to supply.
  std::vector<std::string> counterfactuals() const;
  /// Why this configuration will never drop anything, or no sample for what it shows by itself, with a data set of this
  /// size, or never take anything back; after restore() what the ledger has lost (rank 0); and, once a step has ended,
  /// that no batch so far had the likeness that `probe.likeness` is about. A line each.
  std::vector<std::string> warnings() const;

 private:
  struct __attribute__((visibility("hidden"))) Impl;
  explicit Sieve(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace memsieve
