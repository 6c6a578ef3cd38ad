#pragma once
// What every command is told: the model, the prompts, how pictures are drawn, and where results go.

#include <ATen/core/ScalarType.h>
#include <audit/config/command_options.h>
#include <audit/audit_rooms.h>
#include <memsieve/schema.h>

#include <cstdint>
#include <optional>
#include <string>

namespace memsieve::audit {

/// What a command asks, and so which options it has besides its own.
enum class Asks {
  /// no model: only where results go
  nothing,
  /// what the model predicts
  predictions,
  /// drawings, too, and how they are made
  drawings,
};

/// The options of all commands that ask so.
void add_common_options(Options& options, Asks asks);

/// Their values; what a command adds is read from `settings`.
struct AuditConfig {
  std::string command;
  Settings settings;
  /// folder of a UNet, a pipeline or a checkpoint
  std::string model;
  /// file or folder of adapters, "" = none
  std::string lora;
  /// the options that named them, for messages
  std::string model_key = "model", lora_key = "lora";
  bool ema = false;
  /// "" = beside the model
  std::string scheduler, vae;
  std::string prompts, out, device;
  uint64_t seed = 0;
  /// drawn for each prompt
  int64_t pictures = 1;
  /// pictures drawn at once
  int64_t batch_size = 4;
  int64_t steps = 1;
  double guidance = 1;
  /// half or bfloat16, or float32 throughout
  std::optional<at::ScalarType> autocast;
};

/// The values of settings that have the options of add_common_options(asks). Throws ConfigError for what is missing.
AuditConfig audit_config(const std::string& command, const Settings& settings, Asks asks);

}  // namespace memsieve::audit
