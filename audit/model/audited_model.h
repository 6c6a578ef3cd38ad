#pragma once
// The model that is audited, with the noise that it was trained with.

#include <audit/config/audit_config.h>
#include <diffusion/models/model.h>
#include <diffusion/noise/ddim.h>
#include <runtime/group.h>

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::audit {

struct AuditedModel {
  /// frozen: no weight asks for a gradient
  Model model;
  NoiseSchedule schedule;
  /// of the scheduler's file, with the steps and the guidance that were asked for
  DdimOptions sampling;
  /// of the weights, the adapters and the schedule: what tells one audit from another
  std::string identity;
  /// "" = there is none
  std::string vae;
  /// the folder that the weights were read from, without adapters
  std::string weights;
  /// the file of the adapters; "" = there are none
  std::string adapters = {};
  /// {height, width} of the latents it was made for, as its config.json says; empty = it does not say
  std::vector<int64_t> sample_size = {};

  /// model.predict as the sampling loop wants it.
  Predict predict();
};

/// Whether `path` is what `lora` names, and no model: a file, or a folder or checkpoint with adapters alone.
bool holds_adapters(const std::string& path);

/// COLLECTIVE (agreement on errors). `model` names the folder of a UNet; of a pipeline (unet/, scheduler/, vae/); or a
/// checkpoint (unet/, with `ema` unet_ema/). Where `lora` is set, `ema` means the adapters (lora_ema/). Throws
/// ConfigError or DataError.
AuditedModel load_audited_model(const AuditConfig& config, Group& group);

}  // namespace memsieve::audit
