#include <memsieve/builtin.h>
#include <memsieve/error.h>
#include <memsieve/plugin.h>
#include <memsieve/sieve.h>
#include <trainer/config/train_config.h>

#include <filesystem>

namespace memsieve::trainer {

namespace {

constexpr int64_t kMany = int64_t{1} << 40;

Schema data_schema() {
  Schema keys;
  keys.text("train", "", "HDF5 file to train on (layout: docs/data_format.md)")
      .incidental()
      .text("held_out", "",
            "pictures never trained on that calibrate the sieve (`standardise.population: held_out`, `threshold.kind: "
            "held_out`, `reference.kind: start_model`)")
      .incidental()
      .text("validation", "", "pictures never trained on that the validation loss is computed from")
      .incidental()
      .text("prompts", "", "captions to draw pictures for")
      .incidental()
      .boolean("random_flip", false,
               "show a picture mirrored left to right at half of its visits; a set of latents must have been prepared "
               "with --random-flip")
      .integer("cache_mb", 256, 0, 1 << 24, "MiB up to which a file is held in memory; larger ones are read row by row")
      .incidental()
      .integer("prefetch", 2, 0, 1024,
               "micro-batches that are read, and their noise drawn, ahead of the step by a thread of its own; 0 = none")
      .incidental();
  return keys;
}

Schema model_schema() {
  Schema keys;
  keys.text("pretrained", "",
            "folder of a diffusers UNet (config.json, diffusion_pytorch_model.safetensors) to start from, or of a "
            "pipeline that has it in unet/")
      .text("scheduler", "",
            "scheduler_config.json (or its folder) that the defaults of prediction_type, beta_schedule and so on come "
            "from; empty = scheduler/ beside the UNet of `pretrained`, if there; `none`")
      .text("config", "", "config.json of a diffusers UNet to start from random weights");
  return keys;
}

Schema lora_schema() {
  Schema keys;
  keys.integer("rank", 4, 1, 1 << 16, "rank of the adapters")
      .real("alpha", 0, 0, 1e9, "the adapters' answers are scaled by alpha / rank; 0 = rank")
      .texts("target_modules", LoraConfig().target_modules,
             "layers (linear maps and convolutions) that get an adapter, by the ends of their names")
      .choice("init", "kaiming_uniform", {"kaiming_uniform", "gaussian"},
              "how A starts (B starts at 0): peft's default, or what diffusers' training scripts use")
      .text("pretrained", "", "adapter file (pytorch_lora_weights.safetensors) to start from")
      .incidental();
  return keys;
}

Schema forget_schema() {
  Schema keys;
  keys.text("data", "",
            "HDF5 file of the pictures to forget, each with the caption that brings it back; of the same kind as "
            "data.train, which holds what is to be kept")
      .incidental()
      .real("share", 0.1, 0, 1e6, "norm of the gradient that is subtracted, as a share of that of the rows to keep");
  return keys;
}

void add_batch_keys(Schema& schema) {
  schema.integer("max_train_steps", 1000, 1, kMany, "optimiser steps, skipped ones included")
      .incidental()
      .integer("train_batch_size", 16, 1, 1 << 20, "rows of one micro-batch on each rank")
      .incidental()
      .integer("gradient_accumulation_steps", 1, 1, 1 << 16, "micro-batches in one optimiser step")
      .incidental()
      .choice(
          "mixed_precision", "no", {"no", "fp16", "bf16"},
          "autocast of the model; parameters, losses and what the sieve measures stay float32. `fp16` scales the loss")
      .boolean("gradient_checkpointing", false,
               "keep only the inputs of each block for backward and compute it again there: less memory, about a third "
               "more time, the same gradients up to rounding")
      .incidental()
      .boolean("allow_tf32", false,
               "on a GPU, products of float32 matrices in TF32 (PyTorch's convolutions always may)")
      .real("loss_scale", 65536, 1, 1e18,
            "`fp16`: what the loss is multiplied by at the start; halved at every overflow, whose update is skipped")
      .integer("loss_scale_growth_interval", 2000, 1, 1 << 30,
               "`fp16`: updates in a row without overflow after which the scale doubles")
      .real("proportion_empty_prompts", 0.1, 0, 1, "share of rows trained with the empty caption (caption dropout)");
}

void add_optimizer_keys(Schema& schema) {
  schema.real("learning_rate", 1e-4, 0, 1e3, "AdamW's learning rate after warm-up")
      .choice("lr_scheduler", "constant",
              {"constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"},
              "as in diffusers; `constant` ignores lr_warmup_steps")
      .integer("lr_warmup_steps", 0, 0, kMany, "updates over which the learning rate rises from 0")
      .integer("lr_num_cycles", 1, 1, 1 << 20, "of `cosine_with_restarts`")
      .real("lr_power", 1, 1e-3, 100, "of `polynomial`, which ends at 1e-7")
      .real("lr_decay_fraction", 1, 0, 1,
            "all but the constant ones decay over this last part of max_train_steps (1 = from the end of the warm-up)")
      .real("adam_beta1", 0.9, 0, 0.999999, "decay of the gradient's mean")
      .real("adam_beta2", 0.999, 0, 0.9999999, "decay of the squared gradient's mean")
      .real("adam_weight_decay", 0.01, 0, 1e3, "decoupled weight decay")
      .real("adam_epsilon", 1e-8, 0, 1, "added to the denominator")
      .real("max_grad_norm", 1, 0, 1e12, "gradients are scaled down to this global norm; 0 = no clipping")
      .boolean("use_ema", false, "keep an exponential moving average of the weights; drawing and validation use it")
      .real("ema_decay", 0.9999, 0, 1, "after n updates the decay is min(ema_decay, (1 + n) / (10 + n))");
}

void add_output_keys(Schema& schema) {
  schema.integer("checkpointing_steps", 500, 0, kMany, "steps between checkpoints; 0 = only the last one")
      .incidental()
      .integer("checkpoints_total_limit", 0, 0, kMany, "keep this many newest checkpoints; 0 = all")
      .incidental()
      .text("resume_from_checkpoint", "",
            "`latest`, a checkpoint folder, or `auto`: the latest if there is one, else a new run; empty = a new run")
      .incidental()
      .boolean("tensorboard", true, "write event files for TensorBoard to output_dir/tensorboard/")
      .incidental()
      .integer("log_every", 10, 1, kMany, "steps between lines of the log where it is no terminal")
      .incidental()
      .integer("max_nonfinite_steps", 10, 1, kMany, "stop (exit code 5) after this many non-finite steps in a row")
      .incidental()
      .real("collective_seconds", 1800, 1, 1e7, "how long a collective may take before it counts as a peer's failure")
      .incidental()
      .real("rendezvous_seconds", 0, 0, 1e7,
            "how long a rank waits at the start for the others to come; 0 = 60 under torchrun, which starts them "
            "together, else 300")
      .incidental()
      .real(
          "stop_seconds", 120, 1, 1e7,
          "how long after SIGTERM or SIGINT a step may take before the run ends without another checkpoint: a read or "
          "a peer may hang")
      .incidental()
      .real("bucket_mb", 25, 0.01, 1e5, "MiB of gradients that are all-reduced together");
}

Schema validation_schema() {
  Schema keys;
  keys.integer("every", 0, 0, kMany, "steps between validations; 0 = never")
      .integer("draws", 4, 1, 1000,
               "noise draws of each picture, at timesteps spread evenly; the same in every validation");
  return keys;
}

Schema sampling_schema(const SchedulerFile& scheduler) {
  Schema keys;
  keys.integer("every", 0, 0, kMany, "steps between drawings; 0 = never")
      .integer("num_images_per_prompt", 1, 1, 1 << 16, "pictures drawn for each caption, each from noise of its own")
      .text("vae", "", "a pipeline's vae folder, which decodes what is drawn where the data sets hold latents");
  add_sampling_keys(keys, scheduler);
  return keys;
}

[[noreturn]] void refuse(const Settings& settings, const std::string& key, const std::string& what) {
  throw ConfigError(settings.where(key) + ": " + what);
}

OptimizerConfig optimizer_of(const Settings& s) {
  return {.learning_rate = s.real("learning_rate"),
          .lr_scheduler = s.text("lr_scheduler"),
          .lr_warmup_steps = s.integer("lr_warmup_steps"),
          .lr_decay_fraction = s.real("lr_decay_fraction"),
          .lr_num_cycles = s.integer("lr_num_cycles"),
          .lr_power = s.real("lr_power"),
          .beta1 = s.real("adam_beta1"),
          .beta2 = s.real("adam_beta2"),
          .weight_decay = s.real("adam_weight_decay"),
          .epsilon = s.real("adam_epsilon"),
          .max_grad_norm = s.real("max_grad_norm")};
}

std::optional<LoraConfig> lora_of(const Settings& s) {
  if (!s.has("lora")) return std::nullopt;
  LoraConfig lora;
  lora.rank = s.integer("lora.rank");
  lora.alpha = s.real("lora.alpha") > 0 ? s.real("lora.alpha") : static_cast<double>(lora.rank);
  lora.target_modules = s.texts("lora.target_modules");
  lora.gaussian = s.text("lora.init") == "gaussian";
  return lora;
}

TrainConfig values_of(const Settings& s, const std::string& source) {
  TrainConfig c;
  c.settings = s;
  c.source = source;
  c.seed = static_cast<uint64_t>(s.integer("seed"));
  c.output_dir = s.text("output_dir");
  c.device = s.text("device");
  c.sieve = s.boolean("filter") && s.has("sieve");
  c.train_data = s.text("data.train");
  c.held_out_data = s.text("data.held_out");
  c.validation_data = s.text("data.validation");
  c.prompts_data = s.text("data.prompts");
  c.cache_mb = s.integer("data.cache_mb");
  c.prefetch = s.integer("data.prefetch");
  c.model_pretrained = s.text("model.pretrained");
  c.model_config = s.text("model.config");
  c.diffusion = diffusion_of(s);
  c.lora = lora_of(s);
  if (c.lora) c.lora_pretrained = s.text("lora.pretrained");
  if (s.has("forget")) c.forget = {.data = s.text("forget.data"), .share = s.real("forget.share")};
  c.proportion_empty_prompts = s.real("proportion_empty_prompts");
  c.max_train_steps = s.integer("max_train_steps");
  c.train_batch_size = s.integer("train_batch_size");
  c.accumulation = s.integer("gradient_accumulation_steps");
  if (s.text("mixed_precision") == "bf16") c.autocast = at::kBFloat16;
  if (s.text("mixed_precision") == "fp16") c.autocast = at::kHalf;
  c.gradient_checkpointing = s.boolean("gradient_checkpointing");
  c.allow_tf32 = s.boolean("allow_tf32");
  c.loss_scale = {.initial = s.real("loss_scale"), .growth_interval = s.integer("loss_scale_growth_interval")};
  c.optimizer = optimizer_of(s);
  c.use_ema = s.boolean("use_ema");
  c.ema_decay = s.real("ema_decay");
  c.checkpointing_steps = s.integer("checkpointing_steps");
  c.checkpoints_total_limit = s.integer("checkpoints_total_limit");
  c.resume_from = s.text("resume_from_checkpoint");
  c.validation = {.every = s.integer("validation.every"), .draws = s.integer("validation.draws")};
  c.draw = {.every = s.integer("sampling.every"),
            .per_prompt = s.integer("sampling.num_images_per_prompt"),
            .vae = s.text("sampling.vae")};
  c.tensorboard = s.boolean("tensorboard");
  c.log_every = s.integer("log_every");
  c.max_nonfinite_steps = s.integer("max_nonfinite_steps");
  c.collective_seconds = s.real("collective_seconds");
  c.rendezvous_seconds = s.real("rendezvous_seconds");
  c.stop_seconds = s.real("stop_seconds");
  c.bucket_mb = s.real("bucket_mb");
  return c;
}

bool same_file(const std::string& a, const std::string& b) {
  std::error_code none;
  return a == b || std::filesystem::equivalent(a, b, none);
}

void check_forget(const Settings& s, const ForgetConfig& forget) {
  if (forget.data.empty()) refuse(s, "forget.data", "is missing; name the HDF5 file of the pictures to forget");
  for (const std::string other : {"data.train", "data.held_out"}) {
    if (s.text(other).empty() || !same_file(forget.data, s.text(other))) continue;
    refuse(
        s, "forget.data",
        "is the same file as " + other + "; pictures to forget must be in neither, so write them to one of their own");
  }
}

void check(const TrainConfig& c) {
  const Settings& s = c.settings;
  if (c.output_dir.empty()) refuse(s, "output_dir", "is empty; name the folder that the run writes to");
  if (c.train_data.empty()) refuse(s, "data.train", "is missing; name the HDF5 file to train on");
  if (!c.held_out_data.empty() && same_file(c.held_out_data, c.train_data)) {
    refuse(s, "data.held_out",
           "is the same file as data.train; held-out rows calibrate the sieve and must never be trained on");
  }
  if (c.model_pretrained.empty() && c.model_config.empty()) {
    refuse(s, "model.pretrained", "is missing; name a diffusers UNet folder here, or a config.json in model.config");
  }
  if (!c.model_pretrained.empty() && !c.model_config.empty()) {
    refuse(s, "model.config", "contradicts model.pretrained; keep one of them");
  }
  if (c.forget) check_forget(s, *c.forget);
  if (c.validation.every > 0 && c.validation_data.empty()) {
    refuse(s, "validation.every", "needs data.validation; name that file or set validation.every to 0");
  }
  if (c.draw.every > 0 && c.prompts_data.empty()) {
    refuse(s, "sampling.every", "needs data.prompts; name that file or set sampling.every to 0");
  }
  const bool decays = c.optimizer.lr_scheduler.rfind("constant", 0) != 0;
  if (decays && c.optimizer.lr_warmup_steps >= c.max_train_steps) {
    refuse(s, "lr_warmup_steps",
           "leaves no step to decay in; it must be below max_train_steps (" + std::to_string(c.max_train_steps) + ")");
  }
}

}  // namespace

Schema train_schema(const FilterRegistry& filters, const SchedulerFile& scheduler) {
  Schema schema;
  schema
      .integer("seed", 0, 0, std::numeric_limits<int64_t>::max(),
               "keys all noise, timesteps, caption dropout and shuffling")
      .text("output_dir", "runs/train", "the run folder; one run each")
      .incidental()
      .choice("device", "auto", {"auto", "cpu", "cuda"}, "`auto`: this rank's GPU if there is one")
      .incidental()
      .boolean("filter", true, "`off`: train as if there were no `sieve:` section")
      .section("data", data_schema(), "HDF5 files, relative to the working directory.")
      .section("model", model_schema(), "What to start from: one of the two.")
      .incidental();
  add_batch_keys(schema);
  add_diffusion_keys(schema, scheduler);
  add_optimizer_keys(schema);
  add_output_keys(schema);
  schema
      .optional_section("lora", lora_schema(),
                        "LoRA: the UNet is frozen and small adapters beside its layers are trained; without it the "
                        "UNet's own weights are.")
      .optional_section(
          "forget", forget_schema(),
          "Unlearning (docs/forget.md): each step also takes in a row to forget for each row to keep, and "
          "goes against its gradient.")
      .section("validation", validation_schema(), "Loss on pictures never trained on.")
      .incidental()
      .section("sampling", sampling_schema(scheduler), "Pictures drawn while training.")
      .incidental()
      .optional_section("sieve", Sieve::schema(filters), "The memorisation sieve; without it all rows are trained on.");
  return schema;
}

FilterRegistry registry_for(const std::string& yaml, const std::string& source,
                            const std::vector<std::string>& overrides, Plugins plugins) {
  FilterRegistry registry = builtin_filters();
  const PluginsNamed named = plugins_named(yaml, source, overrides);
  if (plugins == Plugins::refuse && !named.paths.empty())
    throw ConfigError(source + ": sieve.plugins: " + named.paths.front() +
                      " is not opened without --load-plugins: it would run with --print-config and --dry-run, too");
  load_plugins(named, registry);
  return registry;
}

TrainConfig read_config_text(const std::string& yaml, const std::string& source, const FilterRegistry& filters,
                             const std::vector<std::string>& overrides) {
  const SchedulerFile scheduler = scheduler_for(yaml, source, overrides);
  TrainConfig config = values_of(resolve(yaml, source, train_schema(filters, scheduler), overrides), source);
  config.notes = scheduler_notes(config.settings, scheduler);
  config.filters = filters;
  check(config);
  return config;
}

TrainConfig read_config(const std::string& path, const std::vector<std::string>& overrides, Plugins plugins) {
  const std::string yaml = read_text_file(path);
  return read_config_text(yaml, path, registry_for(yaml, path, overrides, plugins), overrides);
}

}  // namespace memsieve::trainer
