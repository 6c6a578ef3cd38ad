#pragma once
// Where a run begins: anew, or from a checkpoint of the same run.

#include <memsieve/schema.h>
#include <runtime/group.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/checkpoint/run_folder.h>
#include <trainer/checkpoint/run_lock.h>
#include <trainer/trainer_rooms.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

struct RunStart {
  std::string run_id;
  /// folder of the checkpoint to go on from, and what it says; "" and nothing for a new run
  std::string checkpoint;
  std::optional<CheckpointState> saved;
  /// steps of newer checkpoints that are damaged (rank 0)
  std::vector<int64_t> damaged;
  /// all that an earlier part of the run was to do, as the run folder says
  int64_t finished_steps = 0;

  /// steps that an earlier part of the run has done
  int64_t first_step() const { return saved ? saved->step : 0; }
};

struct RunStartOptions {
  /// "" = a new run, "auto", "latest", or a checkpoint folder
  std::string resume_from;
  /// the configuration's file, for messages
  std::string source;
  /// touch no file
  bool dry = false;
};

/// COLLECTIVE. Decides, on rank 0 for all, and reads the checkpoint: for "auto" and "latest" the newest that is sound;
/// a warning says why newer ones are passed over. A folder with a run that has no checkpoint yet is cleared. Unless
/// dry, rank 0 takes `lock` first, if the folder is there. Throws ConfigError if `settings` are not those of the run or
/// the folder is another run's or in use, DataError for a checkpoint that is not there or not whole.
RunStart choose_start(const RunFolder& folder, RunLock& lock, const Settings& settings, const RunStartOptions& options,
                      Group& group);

/// Throws ConfigError unless the run goes on with the data (`identity`) and the rows a step that it began with. `where`
/// is the place of the key of the data.
void require_same_rows(const RunStart& start, const std::string& identity, int64_t global_batch,
                       const std::string& where);

}  // namespace memsieve::trainer
