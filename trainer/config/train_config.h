#pragma once
// The configuration of memsieve-train. YAML is the truth: names are those that users of diffusers know, and every key's
// documentation, default and range stand in train_schema().

#include <memsieve/filter.h>
#include <memsieve/schema.h>
#include <trainer/config/diffusion_config.h>
#include <trainer/optim/loss_scale.h>
#include <trainer/optim/optimizer_config.h>
#include <diffusion/models/lora/lora_config.h>
#include <trainer/trainer_rooms.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

struct DrawConfig {
  int64_t every = 0;
  int64_t per_prompt = 1;
  /// folder; "" = none
  std::string vae;
};

struct ValidationConfig {
  int64_t every = 0;
  int64_t draws = 4;
};

struct ForgetConfig {
  std::string data;
  /// of the gradient's norm
  double share = 0;
};

/// A validated configuration, as plain values. `settings` is the same, complete, with the places of its keys.
struct TrainConfig {
  Settings settings;
  /// that `sieve.filters` may name, plug-ins included
  FilterRegistry filters;
  /// the file it came from, for messages
  std::string source;
  /// what the user should be told when the run starts, a line each
  std::vector<std::string> notes;

  uint64_t seed = 0;
  std::string output_dir, device;
  /// a `sieve:` section is there and `filter` is on
  bool sieve = false;
  std::string train_data, held_out_data, validation_data, prompts_data;
  int64_t cache_mb = 256, prefetch = 2;
  std::string model_pretrained, model_config;
  /// nothing = the UNet's own weights are trained
  std::optional<LoraConfig> lora;
  /// adapter file to start from, or ""
  std::string lora_pretrained;
  DiffusionConfig diffusion;
  double proportion_empty_prompts = 0;
  int64_t max_train_steps = 0, train_batch_size = 0, accumulation = 1;
  /// half or bfloat16, or float32 throughout
  std::optional<at::ScalarType> autocast;
  bool gradient_checkpointing = false, allow_tf32 = false;
  /// of half
  LossScaleOptions loss_scale;
  OptimizerConfig optimizer;
  bool use_ema = false;
  double ema_decay = 0;
  int64_t checkpointing_steps = 0, checkpoints_total_limit = 0;
  /// "" = a new run, "auto", "latest", or a checkpoint folder
  std::string resume_from;
  /// nothing = nothing is to be forgotten
  std::optional<ForgetConfig> forget;
  ValidationConfig validation;
  DrawConfig draw;
  bool tensorboard = true;
  int64_t log_every = 0, max_nonfinite_steps = 0;
  /// rendezvous_seconds: 0 = default_rendezvous_seconds
  double collective_seconds = 0, rendezvous_seconds = 0, stop_seconds = 0, bucket_mb = 0;
};

/// Every key of the YAML file, given the filters that `sieve:` may name and the scheduler file that defaults come from.
Schema train_schema(const FilterRegistry& filters, const SchedulerFile& scheduler = {});

/// What to do with plug-ins that a configuration names: run them, or refuse the configuration.
enum class Plugins { load, refuse };

/// Built-in filters and those of the plug-ins that `sieve.plugins` names. Throws ConfigError.
FilterRegistry registry_for(const std::string& yaml, const std::string& source,
                            const std::vector<std::string>& overrides, Plugins plugins = Plugins::load);

/// Reads, validates and checks for contradictions. Throws ConfigError naming file, line, key and remedy.
TrainConfig read_config(const std::string& path, const std::vector<std::string>& overrides,
                        Plugins plugins = Plugins::load);
TrainConfig read_config_text(const std::string& yaml, const std::string& source, const FilterRegistry& filters,
                             const std::vector<std::string>& overrides);

}  // namespace memsieve::trainer
