#include <audit/config/audit_config.h>
#include <memsieve/error.h>

#include <limits>

namespace memsieve::audit {

namespace {

/// Refuses to go on without `key`; `what` says what to name.
[[noreturn]] void missing(const Settings& settings, const std::string& key, const std::string& what) {
  throw ConfigError(settings.where(key) + ": is missing; name " + what);
}

/// What the model and the prompts are is compared by content, so their keys are incidental.
void add_model_options(Options& options) {
  options.text("model", "", "folder of a diffusers UNet, of a pipeline, or of a checkpoint of memsieve-train")
      .incidental()
      .boolean("ema", false, "of a checkpoint: the averaged weights")
      .incidental()
      .text("lora", "", "adapters: a file, a folder that holds one, or a checkpoint trained with LoRA")
      .incidental()
      .text("scheduler", "", "scheduler_config.json or its folder; empty = scheduler/ beside the model")
      .incidental()
      .text("prompts", "", "HDF5 file of prompts (`memsieve prompts`)")
      .incidental()
      .integer("seed", 0, 0, std::numeric_limits<int64_t>::max(), "keys all noise, with the number of the prompt")
      .integer("batch_size", 4, 1, 1 << 16,
               "pictures drawn or predicted at once on each rank; drawing, a forward has twice as many rows")
      .incidental()
      .choice("mixed_precision", "no", {"no", "fp16", "bf16"}, "autocast of the model")
      .choice("device", "auto", {"auto", "cpu", "cuda"}, "auto: this rank's GPU if there is one")
      .incidental();
}

void add_drawing_options(Options& options) {
  options.text("vae", "", "folder of the VAE that pictures are decoded with; empty = vae/ beside the model")
      .incidental()
      .integer("num_images_per_prompt", 4, 1, 1 << 16, "pictures of each prompt, each from noise of its own")
      .integer("num_inference_steps", 50, 1, 1 << 20, "DDIM steps (flow: Euler steps)")
      .real("guidance_scale", 7.5, 1, 1e3, "classifier-free guidance; 1 = the captioned prediction");
}

}  // namespace

void add_common_options(Options& options, Asks asks) {
  options
      .text("out", "",
            "folder for measurements.jsonl, summary.json, page.html and pictures/ of what is drawn; an earlier audit "
            "in it is continued if it asked the same")
      .incidental();
  if (asks != Asks::nothing) add_model_options(options);
  if (asks == Asks::drawings) add_drawing_options(options);
}

AuditConfig audit_config(const std::string& command, const Settings& s, Asks asks) {
  AuditConfig c;
  c.command = command;
  c.settings = s;
  c.out = s.text("out");
  if (asks != Asks::nothing && s.text("model").empty())
    missing(s, "model", "the folder of a UNet, a pipeline or a checkpoint");
  if (c.out.empty()) missing(s, "out", "the folder that results are written to");
  if (asks == Asks::nothing) {
    c.device = "cpu";
    return c;
  }
  c.model = s.text("model");
  c.lora = s.text("lora");
  c.ema = s.boolean("ema");
  c.scheduler = s.text("scheduler");
  c.prompts = s.text("prompts");
  c.device = s.text("device");
  c.seed = static_cast<uint64_t>(s.integer("seed"));
  c.batch_size = s.integer("batch_size");
  if (s.text("mixed_precision") == "fp16") c.autocast = at::kHalf;
  if (s.text("mixed_precision") == "bf16") c.autocast = at::kBFloat16;
  if (c.prompts.empty()) missing(s, "prompts", "an HDF5 file made by `memsieve prompts`");
  if (asks == Asks::predictions) return c;
  c.vae = s.text("vae");
  c.pictures = s.integer("num_images_per_prompt");
  c.steps = s.integer("num_inference_steps");
  c.guidance = s.real("guidance_scale");
  return c;
}

}  // namespace memsieve::audit
