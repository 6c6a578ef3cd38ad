#include <ATen/ATen.h>
#include <audit/model/audited_model.h>
#include <diffusion/io/json_text.h>
#include <diffusion/io/text_file.h>
#include <diffusion/models/diffusers/model_folder.h>
#include <diffusion/models/diffusers/scheduler_file.h>
#include <diffusion/models/families.h>
#include <diffusion/models/finite_weights.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>

#include <filesystem>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

namespace memsieve::audit {

namespace fs = std::filesystem;

namespace {

/// `folder` without a slash at its end.
fs::path trimmed(const std::string& folder) {
  const fs::path path(folder);
  return path.filename().empty() ? path.parent_path() : path;
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// Where the weights lie, and the folder that has scheduler/ and vae/ beside them.
struct Folders {
  std::string weights;
  fs::path around;
};

Folders folders_of(const AuditConfig& c) {
  const fs::path given = trimmed(c.model);
  if (!is_there(given)) throw ConfigError(c.settings.where(c.model_key) + ": " + c.model + ": no such folder");
  if (is_there(given / "config.json")) {
    if (c.ema && c.lora.empty())
      throw ConfigError(c.settings.where("ema") + ": " + c.model +
                        " is the folder of one model; name the checkpoint that has averaged weights, or leave it out");
    return {given.string(), given.parent_path()};
  }
  for (const ModelFamily& family : model_families()) {
    const std::string name = family.component + (c.ema && c.lora.empty() ? "_ema" : "");
    if (is_there(given / name / "config.json")) return {(given / name).string(), given};
    if (is_there(given / family.component / "config.json"))
      throw ConfigError(c.settings.where("ema") + ": " + c.model + " has no averaged weights (" + name +
                        "); leave it out");
  }
  if (is_there(given / "lora"))
    throw ConfigError(c.settings.where(c.model_key) + ": " + c.model +
                      " holds adapters alone; name the model they were "
                      "trained on here, and the adapters with --lora");
  throw ConfigError(c.settings.where(c.model_key) + ": " + c.model +
                    " has no config.json, nor unet/config.json; name the folder of a UNet, a pipeline or a checkpoint");
}

SchedulerFile scheduler_of(const AuditConfig& c, const Folders& folders) {
  if (!c.scheduler.empty()) return read_scheduler_file(c.scheduler);
  const fs::path beside = folders.around / "scheduler" / "scheduler_config.json";
  if (is_there(beside)) return read_scheduler_file(beside.string());
  throw ConfigError(c.settings.where("scheduler") + ": there is no " + beside.string() +
                    " that says what the model predicts; name one with --scheduler");
}

std::string adapter_file(const AuditConfig& c) {
  const fs::path given = trimmed(c.lora);
  if (c.ema) {
    const fs::path averaged = given / "lora_ema" / lora_file_name;
    if (is_there(averaged)) return averaged.string();
    throw ConfigError(c.settings.where("ema") + ": " + c.lora + " has no averaged adapters (lora_ema/" +
                      std::string(lora_file_name) + "); name a checkpoint that has some, or leave it out");
  }
  for (const fs::path& folder : {given / "lora", given})
    if (is_there(folder / lora_file_name)) return (folder / lora_file_name).string();
  std::error_code error;
  if (fs::is_regular_file(given, error)) return given.string();
  throw ConfigError(c.settings.where(c.lora_key) + ": " + c.lora + ": no adapters there (" +
                    std::string(lora_file_name) + ")");
}

/// The model that a checkpoint's adapters were trained on, as its state says; "" where none says so.
std::string base_of(const std::string& adapters) {
  const fs::path state = fs::path(adapters).parent_path().parent_path() / "state.json";
  if (!is_there(state)) return "";
  const auto json = json_object(read_text<DataError>(state.string()));
  return json.contains("base") && json["base"].is_string() ? json["base"].get<std::string>() : "";
}

/// `sample_size` of config.json, a number or two.
std::vector<int64_t> sample_size_of(const std::string& weights) {
  const auto json = json_object(read_text<ConfigError>(config_path(weights)));
  if (!json.contains("sample_size")) return {};
  const auto& size = json["sample_size"];
  if (size.is_number_integer()) return {size.get<int64_t>(), size.get<int64_t>()};
  const bool pair = size.is_array() && size.size() == 2 && size[0].is_number_integer() && size[1].is_number_integer();
  return pair ? size.get<std::vector<int64_t>>() : std::vector<int64_t>{};
}

std::string hash_of(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  uint64_t hash = detail::kFnv1aStart;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor bytes = tensor.detach().to(at::kCPU, at::kFloat).contiguous();
    hash = detail::fnv1a(name.data(), name.size(), hash);
    hash = detail::fnv1a(bytes.const_data_ptr(), bytes.nbytes(), hash);
  }
  return detail::in_hex(hash);
}

/// The weights, frozen; `identity` says which they are.
Model load_weights(const AuditConfig& c, const Folders& folders, const ModelOptions& options, std::string& identity) {
  std::unique_ptr<Denoiser> denoiser = load_denoiser(folders.weights);
  for (const auto& weight : denoiser->module().named_parameters())
    require_finite(weight.key(), weight.value().detach(), folders.weights);
  Model model(std::move(denoiser), options);
  if (c.lora.empty()) {
    model.freeze();
    identity = model.base_fingerprint();
    return model;
  }
  const std::string file = adapter_file(c);
  model.load_lora(file);
  for (auto& [name, weight] : model.lora()->parameters()) {
    require_finite(name, weight.detach(), file);
    at::Tensor(weight).requires_grad_(false);
  }
  const std::string base = base_of(file);
  if (!base.empty() && base != model.base_fingerprint())
    throw ConfigError(c.settings.where("model") + ": is not the model that the adapters of " + c.lora +
                      " were trained on; name that one");
  const LoraConfig& lora = model.lora()->config();
  std::ostringstream scale;
  scale << std::setprecision(17) << lora.alpha / static_cast<double>(lora.rank);
  identity = model.base_fingerprint() + "+" + scale.str() + "*" + hash_of(model.lora()->parameters());
  return model;
}

}  // namespace

bool holds_adapters(const std::string& path) {
  const fs::path given = trimmed(path);
  std::error_code error;
  return is_there(given / "lora") || is_there(given / "lora_ema") || is_there(given / lora_file_name) ||
         fs::is_regular_file(given, error);
}

Predict AuditedModel::predict() {
  return [this](const at::Tensor& x, const at::Tensor& t, const Conditioning& c) { return model.predict(x, t, c); };
}

AuditedModel load_audited_model(const AuditConfig& c, Group& group) {
  std::optional<AuditedModel> loaded;
  on_all_ranks(group, [&] {
    const Folders folders = folders_of(c);
    SchedulerFile file = scheduler_of(c, folders);
    file.sampling.steps = c.steps;
    file.sampling.guidance = c.guidance;
    NoiseSchedule schedule(file.schedule, group.device());
    draw_timesteps(schedule, file.sampling, c.settings.where("num_inference_steps"));
    std::string identity;
    Model model = load_weights(
        c, folders, {.device = group.device(), .autocast = c.autocast, .first_timestep = schedule.first_timestep()},
        identity);
    const fs::path vae = c.vae.empty() ? folders.around / "vae" : fs::path(c.vae);
    const bool has_vae = !c.vae.empty() || is_there(vae / "config.json");
    loaded.emplace(AuditedModel{.model = std::move(model),
                                .schedule = std::move(schedule),
                                .sampling = file.sampling,
                                .identity = identity + "; " + scheduler_json(file.schedule, file.sampling),
                                .vae = has_vae ? vae.string() : "",
                                .weights = folders.weights,
                                .adapters = c.lora.empty() ? "" : adapter_file(c),
                                .sample_size = sample_size_of(folders.weights)});
  });
  return std::move(*loaded);
}

}  // namespace memsieve::audit
