#include <audit/config/audit_config.h>
#include <memsieve/error.h>

#include <limits>

namespace memsieve::audit {

namespace {

/// `--num-images-per-prompt` of `num_images_per_prompt`.
[[noreturn]] void missing(const Settings& settings, const std::string& key, const std::string& what) {
  throw ConfigError(settings.where(key) + ": is missing; name " + what);
}

}  // namespace

// What the model and the prompts are is compared by content, so their keys are incidental.
void add_common_options(Options& options) {
  options.text("model", "", "folder of a diffusers UNet, of a pipeline, or of a checkpoint of memsieve-train")
      .incidental()
      .boolean("ema", false, "of a checkpoint: the averaged weights")
      .incidental()
      .text("lora", "", "adapters: a file, a folder that holds one, or a checkpoint trained with LoRA")
      .incidental()
      .text("scheduler", "", "scheduler_config.json or its folder; empty = scheduler/ beside the model")
      .incidental()
      .text("vae", "", "folder of the VAE that pictures are decoded with; empty = vae/ beside the model")
      .incidental()
      .text("prompts", "", "HDF5 file of prompts (tools/prepare_prompts.py)")
      .incidental()
      .text("out", "",
            "folder for measurements.jsonl, summary.json, pictures/ and page.html; an earlier audit in it is "
            "continued if it asked the same")
      .incidental()
      .integer("seed", 0, 0, std::numeric_limits<int64_t>::max(), "keys all noise, with the number of the prompt")
      .integer("num_images_per_prompt", 4, 1, 1 << 16, "pictures of each prompt, each from noise of its own")
      .integer("num_inference_steps", 50, 1, 1 << 20, "DDIM steps (flow: Euler steps)")
      .real("guidance_scale", 7.5, 0, 1e3, "classifier-free guidance; 1 = the captioned prediction")
      .integer("batch_size", 4, 1, 1 << 16, "pictures drawn at once on each rank; a forward has twice as many rows")
      .incidental()
      .choice("mixed_precision", "no", {"no", "fp16", "bf16"}, "autocast of the model")
      .choice("device", "auto", {"auto", "cpu", "cuda"}, "auto: this rank's GPU if there is one")
      .incidental();
}

void add_output_options(Options& options) {
  options.text("out", "", "folder for measurements.jsonl, summary.json and page.html").incidental();
}

AuditConfig audit_config(const std::string& command, const Settings& s, bool asks_model) {
  AuditConfig c;
  c.command = command;
  c.settings = s;
  c.out = s.text("out");
  if (c.out.empty()) missing(s, "out", "the folder that results are written to");
  if (!asks_model) {
    c.device = "cpu";
    return c;
  }
  c.model = s.text("model");
  c.lora = s.text("lora");
  c.ema = s.boolean("ema");
  c.scheduler = s.text("scheduler");
  c.vae = s.text("vae");
  c.prompts = s.text("prompts");
  c.device = s.text("device");
  c.seed = static_cast<uint64_t>(s.integer("seed"));
  c.pictures = s.integer("num_images_per_prompt");
  c.batch_size = s.integer("batch_size");
  c.steps = s.integer("num_inference_steps");
  c.guidance = s.real("guidance_scale");
  if (s.text("mixed_precision") == "fp16") c.autocast = at::kHalf;
  if (s.text("mixed_precision") == "bf16") c.autocast = at::kBFloat16;
  if (c.model.empty()) missing(s, "model", "the folder of a UNet, a pipeline or a checkpoint");
  if (c.prompts.empty()) missing(s, "prompts", "an HDF5 file made by tools/prepare_prompts.py");
  return c;
}

}  // namespace memsieve::audit
