#pragma once
// Everything one run consists of, built from its configuration in a fixed order on all ranks.

#include <memsieve/sieve.h>
#include <diffusion/data/sampler.h>
#include <runtime/reducer.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/optim/ema.h>
#include <trainer/metrics/metrics.h>
#include <trainer/loop/model.h>
#include <trainer/loop/pictures.h>
#include <trainer/optim/loss_scale.h>
#include <trainer/optim/optimizer.h>
#include <diffusion/data/rows.h>
#include <trainer/checkpoint/run_folder.h>
#include <trainer/rooms.h>

#include <memory>
#include <optional>

namespace memsieve::trainer {

class Session {
 public:
  /// COLLECTIVE. Claims the run folder, opens the data, builds model, optimiser and sieve, and resumes if asked to. An
  /// error on one rank is thrown on all. `dry` = touch no file and start no run.
  Session(const TrainConfig& config, Group& group, bool dry);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// COLLECTIVE. Writes the checkpoint of the state after `step` steps and removes old ones. The sieve's reports must
  /// have been flushed: its ledger is part of that state.
  void save(int64_t step);
  /// COLLECTIVE. Notes that the run has done all that it was to do.
  void finish();
  /// Whether an earlier part of this run has; then nothing is restored or opened for writing.
  bool finished() const { return first_step >= config.max_train_steps && finished_steps_ >= config.max_train_steps; }
  /// What will be trained on what, in a few lines.
  std::string describe();

  const TrainConfig& config;
  Group& group;
  RunFolder folder;
  NoiseSchedule schedule;
  std::optional<RowMaker> training, held_out, validation;
  std::optional<Dataset> prompts;
  /// where pictures are to be drawn
  std::optional<PictureDecoder> pictures;
  std::optional<Sampler> sampler;
  std::optional<Model> model;
  std::optional<AdamW> optimizer;
  std::optional<Ema> ema;
  /// with fp16
  std::optional<LossScale> loss_scale;
  std::unique_ptr<GradientReducer> reducer;
  std::optional<Sieve> sieve;
  std::optional<MetricsWriter> metrics;
  /// steps that an earlier part of this run has done
  int64_t first_step = 0;
  /// steps without a usable gradient, up to now
  int64_t nonfinite_in_a_row = 0;

 private:
  void choose_start();
  void require_same_data() const;
  /// Takes away what an earlier attempt wrote before it had a checkpoint. Throws ConfigError if the folder's run is not
  /// this one.
  void clear_unsaved_run(const std::string& where);
  void open_data();
  void build_model();
  /// COLLECTIVE. The reducer orders its buckets anew after the first backward, and sums depend on that order: a
  /// backward of nothing now, so that the first step of a resumed run sums as any other.
  void settle_buckets();
  void build_sieve();
  void restore();
  void restore_ema();
  void start_writing();

  bool dry_;
  /// checkpoint to resume from, or ""
  std::string run_id_, checkpoint_;
  /// What the data are, whatever their files are called: a run that is resumed must go on with the same.
  std::string data_identity_;
  std::optional<CheckpointState> saved_;
  /// as the folder says
  int64_t finished_steps_ = 0;
};

}  // namespace memsieve::trainer
