#include <ATen/ATen.h>
#include <audit/output/results.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/io/contact_sheet.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

extern char** environ;  // NOLINT(readability-redundant-declaration)

namespace memsieve::audit {

namespace fs = std::filesystem;

namespace {

/// Whether a program ran and ended with 0. What it says on stdout is not shown.
bool ran(std::vector<std::string> words) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error = posix_spawnp(&child, arguments.front(), &files, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (error != 0) return false;
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void render_page(const std::string& folder) {
  const std::string package = MEMSIEVE_PACKAGE;
  std::error_code error;
  if (fs::exists(package, error) &&
      ran({"env", "PYTHONPATH=" + package, MEMSIEVE_PAGE_PYTHON, "-m", "memsieve", "audit-page", folder}))
    log_info("page: " + folder + "/page.html");
  else
    log_info("for the page: python -m memsieve audit-page " + folder);
}

}  // namespace

Json summary_head(const AuditConfig& config, const AuditedModel& model) {
  return {{"command", config.command},
          {"model", config.model},
          {"lora", config.lora},
          {"ema", config.ema},
          {"prompts_file", config.prompts},
          {"prediction_type", model.schedule.config().prediction_type},
          {"timesteps", draw_timesteps(model.schedule, model.sampling)},
          {"guidance_scale", config.guidance},
          {"num_images_per_prompt", config.pictures},
          {"seed", config.seed}};
}

Json as_json(const Interval& interval) {
  return {{"estimate", interval.estimate}, {"low", interval.low}, {"high", interval.high}};
}

void write_results(const std::string& folder, const Json& summary, Group& group) {
  on_all_ranks(group, [&] {
    if (group.rank() != 0) return;
    write_text_atomically(folder + "/summary.json", summary.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
    log_info("summary: " + folder + "/summary.json");
    render_page(folder);
  });
}

std::optional<PictureDecoder> picture_decoder(const AuditConfig& config, const AuditedModel& model,
                                              const Prompts& prompts, Group& group) {
  std::optional<PictureDecoder> decoder;
  on_all_ranks(group, [&] {
    const bool pixels = prompts.data().codec().has_value();
    const std::string& vae = pixels ? config.vae : model.vae;
    if (!pixels && vae.empty()) {
      log_info("no pictures are shown: there is no vae/ beside the model; name one with --vae");
      return;
    }
    decoder.emplace(vae, prompts.data(), group.device(),
                    VaeKeys{.vae = config.settings.where("vae"), .asked = config.settings.where("vae")});
  });
  return decoder;
}

std::pair<std::string, std::string> comparison_input(const std::optional<PictureDecoder>& decoder) {
  return {"comparison", decoder ? "pixels by " + decoder->identity() : "latents"};
}

void write_picture(const std::string& folder, const std::string& name, const at::Tensor& picture) {
  const fs::path path = fs::path(folder) / name;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) throw DataError(path.parent_path().string() + ": cannot be made: " + error.message());
  const at::Tensor host = picture.cpu();
  write_contact_sheet(path.string(), host.view({1, 1, host.size(0), host.size(1), host.size(2)}), {.margin = 0});
}

}  // namespace memsieve::audit
