#pragma once
// scheduler/scheduler_config.json of a diffusers pipeline: which noise a checkpoint was trained with.

#include <diffusion/noise/ddim.h>

#include <string>

namespace memsieve::diffusion {

/// What such a file says, as far as training and drawing here can follow it.
struct SchedulerFile {
  /// "" = there is no file; the rest holds this project's defaults
  std::string path;
  ScheduleConfig schedule;
  /// steps and guidance are not the file's
  DdimOptions sampling;
};

/// `path`: the file, or the folder that holds it. Reads what diffusers' DDIMScheduler.from_config would, for any of the
/// schedulers that share its betas, and FlowMatchEulerDiscreteScheduler as `flow`; a key that is absent has
/// DDIMScheduler's default, but clip_sample is false, as Stable Diffusion's pipelines want it. Keys that only choose a
/// way of sampling are ignored. ConfigError naming file, key and value for what would make the training differ:
/// trained_betas, thresholding, a shift of flow, another class.
SchedulerFile read_scheduler_file(const std::string& path);

/// scheduler_config.json text that diffusers opens (as DDIMScheduler or FlowMatchEulerDiscreteScheduler) and
/// read_scheduler_file reads back.
std::string scheduler_json(const ScheduleConfig& schedule, const DdimOptions& sampling);

}  // namespace memsieve::diffusion
