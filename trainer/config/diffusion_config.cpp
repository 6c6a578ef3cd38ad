#include <diffusion/models/families.h>
#include <memsieve/error.h>
#include <trainer/config/diffusion_config.h>

#include <filesystem>
#include <sstream>

namespace memsieve::trainer {

namespace fs = std::filesystem;

namespace {

std::string text_of(const std::string& value) {
  return value;
}
std::string text_of(bool value) {
  return value ? "true" : "false";
}
template <class T>
std::string text_of(T value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

/// The place of the first of `keys` that the YAML sets, for a message about all of them.
std::string where_any(const Settings& s, const std::vector<std::string>& keys) {
  for (const auto& key : keys) {
    if (s.has(key)) return s.where(key);
  }
  return s.where(keys.front());
}

}  // namespace

SchedulerFile scheduler_for(const std::string& yaml, const std::string& source,
                            const std::vector<std::string>& overrides) {
  const auto peek = [&](const std::string& key) {
    const auto texts = peek_texts(yaml, source, key, overrides);
    return texts.empty() ? std::string() : texts.front();
  };
  const std::string named = peek("model.scheduler");
  if (named == "none") return {};
  if (!named.empty()) return read_scheduler_file(named);
  const std::string pretrained = peek("model.pretrained");
  if (pretrained.empty()) return {};
  const bool of_pipeline = denoiser_folder(pretrained) != pretrained;
  std::error_code error;
  // As it is named, and where it really lies: `.` and a link have other neighbours.
  for (fs::path folder : {fs::path(pretrained), fs::weakly_canonical(pretrained, error)}) {
    if (folder.filename().empty()) folder = folder.parent_path();
    if (!of_pipeline) folder = folder.parent_path();
    const fs::path beside = folder / "scheduler" / "scheduler_config.json";
    if (!folder.empty() && fs::exists(beside, error)) return read_scheduler_file(beside.string());
  }
  return {};
}

void add_diffusion_keys(Schema& schema, const SchedulerFile& file) {
  const ScheduleConfig& s = file.schedule;
  schema
      .choice("prediction_type", s.prediction_type, {"epsilon", "v_prediction", "sample", "flow"},
              "what the model predicts; `flow`: rectified flow, noise - x0 at x_t = (1 - s) x0 + s noise")
      .choice("beta_schedule", s.beta_schedule, {"scaled_linear", "linear", "squaredcos_cap_v2"},
              "how noise grows; `flow` has no betas")
      .real("beta_start", s.beta_start, 1e-9, 0.999, "first beta")
      .real("beta_end", s.beta_end, 1e-9, 0.999, "last beta")
      .integer("num_train_timesteps", s.num_train_timesteps, 1, 1 << 20, "timesteps of the noise schedule")
      .boolean("rescale_betas_zero_snr", s.rescale_betas_zero_snr,
               "the last timestep is pure noise (Lin et al., WACV 2024); not with `epsilon`; draw with "
               "`timestep_spacing: trailing`")
      .choice("timestep_sampling", "uniform", {"uniform", "logit_normal"},
              "which timesteps are trained; `logit_normal`: the noise level t / num_train_timesteps is "
              "sigmoid(logit_mean + logit_std * normal)")
      .real("logit_mean", 0, -20, 20, "above 0 = more noise")
      .real("logit_std", 1, 1e-3, 20, "spread of `logit_normal`")
      .real("noise_offset", 0, 0, 100,
            "adds this times one normal number per row and channel to the noise (offset noise); 0 = off")
      .real("input_perturbation", 0, 0, 100,
            "adds this times more noise to the model's input, not to its target (Ning et al., ICML 2023); 0 = off")
      .real("snr_gamma", 0, 0, 1e9, "gamma of Min-SNR loss weights (Hang et al., ICCV 2023); 0 = off");
}

void add_sampling_keys(Schema& schema, const SchedulerFile& file) {
  const DdimOptions& o = file.sampling;
  schema.integer("num_inference_steps", 25, 1, 1 << 20, "DDIM steps (`flow`: Euler steps)")
      .real("guidance_scale", 2, 0, 1e3, "classifier-free guidance; 1 or less = none")
      .choice("timestep_spacing", o.timestep_spacing, {"leading", "trailing", "linspace"},
              "which timesteps are visited; `trailing` begins at the last one")
      .integer("steps_offset", o.steps_offset, 0, 1 << 20, "added to the timesteps of `leading`")
      .boolean("set_alpha_to_one", o.set_alpha_to_one,
               "the last step ends without noise instead of at the level of timestep 0")
      .boolean("clip_sample", o.clip_sample, "clamp the predicted picture to +-clip_sample_range in each step")
      .real("clip_sample_range", o.clip_sample_range, 1e-6, 1e6, "see clip_sample");
}

DiffusionConfig diffusion_of(const Settings& s) {
  DiffusionConfig c;
  c.schedule = {.num_train_timesteps = s.integer("num_train_timesteps"),
                .beta_schedule = s.text("beta_schedule"),
                .beta_start = s.real("beta_start"),
                .beta_end = s.real("beta_end"),
                .prediction_type = s.text("prediction_type"),
                .rescale_betas_zero_snr = s.boolean("rescale_betas_zero_snr")};
  c.noise = {.offset = s.real("noise_offset"),
             .perturbation = s.real("input_perturbation"),
             .timesteps = s.text("timestep_sampling"),
             .logit_mean = s.real("logit_mean"),
             .logit_std = s.real("logit_std"),
             .random_flip = s.boolean("data.random_flip")};
  c.snr_gamma = s.real("snr_gamma");
  c.draw = {.steps = s.integer("sampling.num_inference_steps"),
            .guidance = s.real("sampling.guidance_scale"),
            .timestep_spacing = s.text("sampling.timestep_spacing"),
            .steps_offset = s.integer("sampling.steps_offset"),
            .set_alpha_to_one = s.boolean("sampling.set_alpha_to_one"),
            .clip_sample = s.boolean("sampling.clip_sample"),
            .clip_sample_range = s.real("sampling.clip_sample_range")};
  if (c.schedule.beta_start > c.schedule.beta_end)
    throw ConfigError(where_any(s, {"beta_start", "beta_end"}) + ": is larger than beta_end; exchange them");
  check_schedule(c.schedule, where_any(s, {"rescale_betas_zero_snr", "prediction_type"}));
  if (s.integer("sampling.every") > 0 && c.schedule.prediction_type != "flow")
    ddim_timesteps(c.schedule.num_train_timesteps, c.draw, s.where("sampling.num_inference_steps"));
  return c;
}

std::vector<std::string> scheduler_notes(const Settings& settings, const SchedulerFile& file) {
  std::vector<std::string> notes;
  if (file.path.empty() && settings.text("model.scheduler").empty() && !settings.text("model.pretrained").empty() &&
      !settings.has("prediction_type"))
    notes.push_back(settings.where("model.pretrained") +
                    ": has no scheduler/scheduler_config.json beside it that says what it predicts; it is trained as a "
                    "model of prediction_type " +
                    settings.text("prediction_type") + "; set that key, or name the file in model.scheduler");
  if (settings.integer("sampling.every") > 0 && settings.boolean("rescale_betas_zero_snr") &&
      settings.text("sampling.timestep_spacing") != "trailing")
    notes.push_back(settings.where("sampling.timestep_spacing") + ": is " + settings.text("sampling.timestep_spacing") +
                    ", which does not begin at the pure noise that rescale_betas_zero_snr trains; set it to trailing");
  const auto compare = [&](const std::string& key, const auto& now, const auto& then) {
    if (file.path.empty() || !settings.has(key) || now == then) return;
    notes.push_back(settings.where(key) + ": is " + text_of(now) + ", but " + file.path + " says " + text_of(then) +
                    "; the configuration counts");
  };
  const ScheduleConfig& s = file.schedule;
  compare("prediction_type", settings.text("prediction_type"), s.prediction_type);
  compare("num_train_timesteps", settings.integer("num_train_timesteps"), s.num_train_timesteps);
  compare("rescale_betas_zero_snr", settings.boolean("rescale_betas_zero_snr"), s.rescale_betas_zero_snr);
  if (s.prediction_type == "flow") return notes;
  compare("beta_schedule", settings.text("beta_schedule"), s.beta_schedule);
  compare("beta_start", settings.real("beta_start"), s.beta_start);
  compare("beta_end", settings.real("beta_end"), s.beta_end);
  return notes;
}

}  // namespace memsieve::trainer
