#pragma once
// What every command is told: the model, the prompts, how pictures are drawn, and where results go.

#include <ATen/core/ScalarType.h>
#include <audit/config/command_options.h>
#include <audit/rooms.h>
#include <memsieve/schema.h>

#include <cstdint>
#include <optional>
#include <string>

namespace memsieve::audit {

/// Options of every command that asks a model.
void add_common_options(Options& options);
/// Those of them that say where results go, for a command that asks none.
void add_output_options(Options& options);

/// Their values; what a command adds is read from `settings`.
struct AuditConfig {
  std::string command;
  Settings settings;
  /// folder of a UNet, a pipeline or a checkpoint
  std::string model;
  /// file or folder of adapters, "" = none
  std::string lora;
  bool ema = false;
  /// "" = beside the model
  std::string scheduler, vae;
  std::string prompts, out, device;
  uint64_t seed = 0;
  /// drawn for each prompt
  int64_t pictures = 1;
  /// pictures drawn at once
  int64_t batch_size = 4;
  int64_t steps = 50;
  double guidance = 7.5;
  /// half or bfloat16, or float32 throughout
  std::optional<at::ScalarType> autocast;
};

/// Throws ConfigError for what is missing. `asks_model`: the settings are those of add_common_options.
AuditConfig audit_config(const std::string& command, const Settings& settings, bool asks_model = true);

}  // namespace memsieve::audit
