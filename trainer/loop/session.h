#pragma once
// Everything one run consists of, built from its configuration in a fixed order on all ranks. The only place below
// train() that knows the whole configuration: the parts take what they use.

#include <diffusion/data/sampler.h>
#include <diffusion/models/vae/picture_decoder.h>
#include <memsieve/sieve.h>
#include <trainer/checkpoint/run_folder.h>
#include <trainer/config/train_config.h>
#include <trainer/loop/reference_pass.h>
#include <trainer/loop/make_model.h>
#include <trainer/loop/run_data.h>
#include <trainer/loop/run_start.h>
#include <trainer/loop/starting_model.h>
#include <trainer/loop/train_step.h>
#include <trainer/loop/trainee.h>
#include <trainer/metrics/metrics.h>
#include <trainer/trainer_rooms.h>

#include <chrono>
#include <memory>
#include <optional>

namespace memsieve::trainer {

class Session {
 public:
  /// COLLECTIVE. Claims the run folder, opens the data, builds model, optimiser and sieve, and resumes if asked to. An
  /// error on one rank is thrown on all. `dry` = touch no file and start no run. `config` and `group` must outlive it.
  Session(const TrainConfig& config, Group& group, bool dry);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const RunFolder& folder() const { return folder_; }
  const RunStart& start() const { return start_; }
  RunData& data() { return *data_; }
  const Sampler& sampler() const { return *sampler_; }
  Trainee& trainee() { return *trainee_; }
  /// null = none
  Sieve* sieve() { return sieve_ ? &*sieve_ : nullptr; }
  /// null where no pictures are to be drawn
  PictureDecoder* pictures() { return pictures_ ? &*pictures_ : nullptr; }
  /// Not there in a dry or a finished run.
  MetricsWriter& metrics() { return *metrics_; }

  /// For a TrainStep of this run.
  StepOptions step_options() const;
  StepParts step_parts() {
    return {.data = data(),
            .sampler = sampler(),
            .trainee = trainee(),
            .sieve = sieve(),
            .start = starting_model_ ? &*starting_model_ : nullptr,
            .group = group_};
  }

  /// Whether the sieve wants to be shown what the starting model finds easy, and has not been.
  bool needs_reference() const;
  /// COLLECTIVE. Shows it: see reference_pass.
  bool make_reference();

  /// COLLECTIVE. Writes the checkpoint of the state after `step` steps and removes old ones. The sieve's reports must
  /// have been flushed: its ledger is part of that state. `nonfinite_in_a_row`: steps without a usable
  /// gradient, up to now. `stream_position`: where step `step` begins in the stream of samples.
  void save(int64_t step, int64_t nonfinite_in_a_row, int64_t stream_position);
  /// Throws DataError if the run's folder is not where it was (rank 0; looks once a second).
  void check_folder();
  /// COLLECTIVE. Notes that the run has done all that it was to do.
  void finish();
  /// Whether an earlier part of this run has; then nothing is restored or opened for writing.
  bool finished() const;
  /// What will be trained on what, in a few lines.
  std::string describe();

 private:
  /// Whether samples that the sieve has flagged are kept out of the batches.
  bool passes_over() const;
  void open_data();
  Model checked_model();
  void build_trainee();
  /// `ledger`: the file to write, "" = none.
  Setup sieve_setup(const std::string& ledger) const;
  void build_sieve();
  void build_starting_model();
  ModelSource model_source() const;
  /// Throws ConfigError if the weights that this run starts from are not those of the run that is resumed.
  void require_same_base(const std::string& fingerprint, const std::string& what) const;
  std::string starting_model_memory() const;
  std::string to_forget() const;
  void restore();
  void claim_folder();
  void start_writing();

  const TrainConfig& config_;
  Group& group_;
  bool dry_;
  RunFolder folder_;
  RunLock lock_;
  std::chrono::steady_clock::time_point folder_checked_;
  RunStart start_;
  std::optional<RunData> data_;
  std::optional<Sampler> sampler_;
  std::optional<PictureDecoder> pictures_;
  std::optional<Trainee> trainee_;
  std::optional<Sieve> sieve_;
  std::optional<StartingModel> starting_model_;
  std::optional<MetricsWriter> metrics_;
};

}  // namespace memsieve::trainer
