#pragma once
// The data sets of a run, and the noise that their rows get.

#include <diffusion/data/rows.h>
#include <diffusion/noise/schedule.h>
#include <trainer/trainer_rooms.h>

#include <cstdint>
#include <optional>
#include <string>

namespace memsieve::trainer {

struct RunDataOptions {
  /// HDF5 files; "" = none, but for `train`
  std::string train, held_out, validation, prompts, forget = {};
  /// a file up to this size is held in memory
  int64_t cache_bytes = int64_t{256} << 20;
  /// rows may be asked for mirrored
  bool random_flip = false;
  ScheduleConfig schedule;
};

struct RunData {
  /// Opens the files. Throws DataError, also where their rows do not match those of `train`.
  RunData(const RunDataOptions& options, c10::Device device);
  RunData(const RunData&) = delete;
  RunData& operator=(const RunData&) = delete;

  /// DataError naming a file that has shrunk, changed or been replaced since it was opened.
  void require_unchanged() const;

  NoiseSchedule schedule;
  /// `training` is always there
  std::optional<RowMaker> training, held_out, validation, forget;
  std::optional<Dataset> prompts;
  /// What training, held-out and forget data are, whatever their files are called: a run that is resumed must go on
  /// with the same.
  std::string identity;
};

}  // namespace memsieve::trainer
