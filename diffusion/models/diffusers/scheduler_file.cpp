#include <memsieve/error.h>
#include <diffusion/models/diffusers/scheduler_file.h>
#include <diffusion/io/json_text.h>
#include <diffusion/io/text_file.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

namespace memsieve::diffusion {

namespace fs = std::filesystem;

namespace {

const char* const kFlowClass = "FlowMatchEulerDiscreteScheduler";
const char* const kRemedy = "set model.scheduler to none and give the schedule in the YAML";

/// Schedulers that differ in how they sample, not in the noise that a model is trained with.
const std::set<std::string>& beta_classes() {
  static const std::set<std::string> names{"DDIMScheduler",
                                           "DDPMScheduler",
                                           "PNDMScheduler",
                                           "LMSDiscreteScheduler",
                                           "EulerDiscreteScheduler",
                                           "EulerAncestralDiscreteScheduler",
                                           "HeunDiscreteScheduler",
                                           "KDPM2DiscreteScheduler",
                                           "KDPM2AncestralDiscreteScheduler",
                                           "DEISMultistepScheduler",
                                           "DPMSolverSinglestepScheduler",
                                           "DPMSolverMultistepScheduler",
                                           "DPMSolverSDEScheduler",
                                           "UniPCMultistepScheduler",
                                           "LCMScheduler",
                                           "TCDScheduler"};
  return names;
}

class Reader {
 public:
  Reader(nlohmann::json json, std::string path) : json_(std::move(json)), path_(std::move(path)) {}

  /// Whether the key is there with anything but null.
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  template <class T>
  void read(const char* key, T& into) const {
    if (!has(key)) return;
    const auto& value = json_[key];
    bool fits = false;
    if constexpr (std::is_same_v<T, bool>) fits = value.is_boolean();
    if constexpr (std::is_same_v<T, int64_t>) fits = value.is_number_integer();
    if constexpr (std::is_same_v<T, double>) fits = value.is_number();
    if constexpr (std::is_same_v<T, std::string>) fits = value.is_string();
    if (!fits) refuse(key, "has the wrong type");
    into = value.get<T>();
  }

  [[noreturn]] void refuse(const char* key, const std::string& why) const {
    throw ConfigError(path_ + ": " + key + " is " + json_text(json_[key]) + ", which " + why + "; " + kRemedy);
  }

 private:
  nlohmann::json json_;
  std::string path_;
};

void read_flow(const Reader& reader, SchedulerFile& file) {
  file.schedule.prediction_type = "flow";
  double shift = 1;
  reader.read("shift", shift);
  if (shift != 1) reader.refuse("shift", "shifts the noise levels; only 1 is supported");
  for (const char* key : {"use_dynamic_shifting", "invert_sigmas"}) {
    bool on = false;
    reader.read(key, on);
    if (on) reader.refuse(key, "changes the noise levels; only false is supported");
  }
  if (reader.has("shift_terminal")) reader.refuse("shift_terminal", "changes the noise levels; only null is supported");
}

void read_betas(const Reader& reader, SchedulerFile& file) {
  ScheduleConfig& s = file.schedule;
  // The defaults that all of these classes have in diffusers.
  s.beta_schedule = "linear";
  s.beta_start = 0.0001;
  s.beta_end = 0.02;
  if (reader.has("trained_betas")) reader.refuse("trained_betas", "is not supported");
  reader.read("prediction_type", s.prediction_type);
  reader.read("beta_schedule", s.beta_schedule);
  reader.read("beta_start", s.beta_start);
  reader.read("beta_end", s.beta_end);
  reader.read("rescale_betas_zero_snr", s.rescale_betas_zero_snr);
  bool thresholding = false;
  reader.read("thresholding", thresholding);
  if (thresholding) reader.refuse("thresholding", "is not supported");
  DdimOptions& o = file.sampling;
  o.steps_offset = 0;
  o.set_alpha_to_one = true;
  reader.read("timestep_spacing", o.timestep_spacing);
  reader.read("steps_offset", o.steps_offset);
  reader.read("set_alpha_to_one", o.set_alpha_to_one);
  reader.read("clip_sample", o.clip_sample);
  reader.read("clip_sample_range", o.clip_sample_range);
  static const std::set<std::string> spacings{"leading", "trailing", "linspace"};
  if (spacings.count(o.timestep_spacing) == 0)
    reader.refuse("timestep_spacing", "is none of leading, trailing and linspace");
}

}  // namespace

SchedulerFile read_scheduler_file(const std::string& path) {
  SchedulerFile file;
  std::error_code error;
  file.path = fs::is_directory(path, error) ? (fs::path(path) / "scheduler_config.json").string() : path;
  auto json = json_object(read_text<ConfigError>(file.path, kRemedy));
  if (json.is_null()) throw ConfigError(file.path + ": is no JSON object; " + kRemedy);
  const Reader reader(std::move(json), file.path);
  std::string kind = "DDIMScheduler";
  reader.read("_class_name", kind);
  if (kind != kFlowClass && beta_classes().count(kind) == 0) reader.refuse("_class_name", "is not supported");
  reader.read("num_train_timesteps", file.schedule.num_train_timesteps);
  if (kind == kFlowClass) {
    read_flow(reader, file);
  } else {
    read_betas(reader, file);
  }
  check_schedule(file.schedule, file.path);
  return file;
}

std::string scheduler_json(const ScheduleConfig& schedule, const DdimOptions& sampling) {
  const bool flow = prediction_from_name(schedule.prediction_type) == Prediction::flow;
  nlohmann::ordered_json json{{"_class_name", flow ? kFlowClass : "DDIMScheduler"},
                              {"num_train_timesteps", schedule.num_train_timesteps}};
  if (flow) {
    json["shift"] = 1.0;
  } else {
    json["beta_schedule"] = schedule.beta_schedule;
    json["beta_start"] = schedule.beta_start;
    json["beta_end"] = schedule.beta_end;
    json["trained_betas"] = nullptr;
    json["prediction_type"] = schedule.prediction_type;
    json["rescale_betas_zero_snr"] = schedule.rescale_betas_zero_snr;
    json["timestep_spacing"] = sampling.timestep_spacing;
    json["steps_offset"] = sampling.steps_offset;
    json["set_alpha_to_one"] = sampling.set_alpha_to_one;
    json["clip_sample"] = sampling.clip_sample;
    json["clip_sample_range"] = sampling.clip_sample_range;
  }
  return json.dump(2) + "\n";
}

}  // namespace memsieve::diffusion
