#pragma once
// The model that a run starts from, the same on all ranks.

#include <diffusion/models/model.h>
#include <runtime/group.h>
#include <trainer/trainer_rooms.h>

#include <optional>
#include <string>

namespace memsieve::trainer {

struct ModelSource {
  /// folder of a diffusers denoiser or of a pipeline that has one; or "" and
  std::string pretrained;
  /// the config.json of one that starts from random weights
  std::string config;
  /// keys random weights and adapters
  uint64_t seed = 0;
  bool gradient_checkpointing = false;
  /// nothing = the denoiser's own weights are trained
  std::optional<LoraConfig> lora;
  /// adapter file to start from, or ""
  std::string lora_pretrained;
  /// begins messages about the adapters: "run.yaml:3: lora"
  std::string lora_where = "lora";
  ModelOptions model;
};

/// COLLECTIVE (agreement on errors; weights of rank 0 on all ranks). The model that the options name, with the weights
/// of checkpoint `checkpoint` if that is not empty: a whole denoiser, or adapters beside the options' denoiser. Throws
/// ConfigError or DataError, the latter also for weights that hold a NaN or Inf.
Model make_model(const ModelSource& options, const std::string& checkpoint, Group& group);

/// COLLECTIVE. The same without a checkpoint and without adapters: what fine-tuning starts from.
Model make_starting_model(ModelSource source, Group& group);

}  // namespace memsieve::trainer
