#include <diffusion/models/families.h>
#include <diffusion/models/lora/lora.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <trainer/loop/run_start.h>

#include <filesystem>

namespace memsieve::trainer {

namespace {

/// The setting with which a new run starts from a checkpoint's weights.
std::string start_from(const std::string& checkpoint) {
  const std::string adapter = checkpoint + "/lora/" + lora_file_name;
  return std::filesystem::exists(adapter) ? "lora.pretrained=" + adapter
                                          : "model.pretrained=" + denoiser_folder(checkpoint);
}

/// Takes away what an earlier attempt wrote before it had a checkpoint. Throws ConfigError if the folder's run is not
/// this one, or was finished.
void clear_unsaved_run(const RunFolder& folder, const Settings& settings, const std::string& where, bool dry) {
  const auto existing = folder.run_id();
  if (!existing) return folder.refuse_if_used(where);
  const std::string saved = folder.file("config.yaml");
  if (const auto difference = settings.difference_from(read_text_file(saved), saved)) {
    throw ConfigError(where + ": " + folder.path() + " holds run " + *existing +
                      ", which has no checkpoint and another configuration (now / then): " + difference->line() +
                      "; choose another folder with --set output_dir=FOLDER");
  }
  if (const int64_t steps = folder.finished_steps(); steps > 0) {
    throw ConfigError(where + ": " + folder.path() + " holds run " + *existing + ", which finished its " +
                      std::to_string(steps) +
                      " steps, but its checkpoints are gone; put them back into checkpoints/, or choose another folder "
                      "with --set output_dir=FOLDER");
  }
  if (dry) return;
  log_warning(folder.path() + " holds run " + *existing + ", which ended before its first checkpoint; starting anew");
  folder.forget();
}

struct Choice {
  /// to go on from, or ""
  std::string checkpoint;
  std::string run_id;
  std::vector<int64_t> damaged;
};

Choice newest_sound(const RunFolder& folder, const std::vector<int64_t>& steps) {
  Choice choice;
  std::vector<std::string> reasons;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    choice.checkpoint = folder.checkpoint(*step);
    try {
      choice.run_id = read_checkpoint_state(choice.checkpoint, Verify::contents).run_id;
      for (const auto& reason : reasons) log_warning(reason + "; passed over for " + choice.checkpoint);
      return choice;
    } catch (const DamagedCheckpoint& error) {
      reasons.push_back(error.reason());
      choice.damaged.push_back(*step);
    }
  }
  throw DataError(reasons.front() + (steps.size() > 1 ? "; nor is any older checkpoint whole" : "") +
                  "; start a new run in another folder (--set output_dir=FOLDER)");
}

Choice named_checkpoint(const RunFolder& folder, const std::string& from, const std::string& where) {
  const std::string owner = read_checkpoint_state(from, Verify::contents).run_id;
  const auto existing = folder.run_id();
  if (!existing || owner != *existing) {
    throw ConfigError(where + ": " + from + " belongs to run " + owner + ", but " + folder.path() +
                      " does not; set output_dir to that run's folder, or start a new run from its weights with " +
                      start_from(from));
  }
  return {.checkpoint = from, .run_id = owner, .damaged = {}};
}

Choice choose_checkpoint(const RunFolder& folder, const Settings& settings, const RunStartOptions& options) {
  const std::string& from = options.resume_from;
  const std::string where = settings.where(from.empty() ? "output_dir" : "resume_from_checkpoint");
  Choice new_run{.checkpoint = "", .run_id = make_run_id(), .damaged = {}};
  if (from.empty()) {
    folder.refuse_if_used(where);
    return new_run;
  }
  if (from != "latest" && from != "auto") return named_checkpoint(folder, from, where);
  if (const auto steps = folder.checkpoints(); !steps.empty()) return newest_sound(folder, steps);
  if (from == "latest") {
    throw DataError(where + ": " + folder.path() +
                    " holds no checkpoint to resume from; start a new run without --resume-from, or use "
                    "--resume-from auto, which does either");
  }
  clear_unsaved_run(folder, settings, where, options.dry);
  return new_run;
}

}  // namespace

RunStart choose_start(const RunFolder& folder, RunLock& lock, const Settings& settings, const RunStartOptions& options,
                      Group& group) {
  RunStart start;
  on_all_ranks(group, [&] {
    if (group.rank() != 0) return;
    const std::string where = settings.where("output_dir");
    if (options.dry) {
      RunLock::refuse_if_taken(folder.path(), where);
    } else {
      lock.take(folder.path(), where);
      folder.put_back_replaced();
    }
    Choice choice = choose_checkpoint(folder, settings, options);
    start.checkpoint = choice.checkpoint;
    start.run_id = choice.run_id;
    start.damaged = std::move(choice.damaged);
    start.finished_steps = folder.finished_steps();
  });
  start.checkpoint = group.broadcast(start.checkpoint);
  start.run_id = group.broadcast(start.run_id);
  start.finished_steps = std::stoll(group.broadcast(std::to_string(start.finished_steps)));
  if (start.checkpoint.empty()) return start;
  on_all_ranks(group, [&] {
    start.saved = read_checkpoint_state(start.checkpoint, Verify::sizes);
    if (const auto difference = settings.difference_from(start.saved->meaning, start.checkpoint + "/state.json")) {
      throw ConfigError(options.source + ": differs from the configuration of " + start.checkpoint +
                        " (now / then): " + difference->line() +
                        "; resume with the same one, or start a new run with " + start_from(start.checkpoint));
    }
  });
  return start;
}

void require_same_rows(const RunStart& start, const std::string& identity, int64_t global_batch,
                       const std::string& where) {
  if (!start.saved) return;
  if (!start.saved->data.empty() && identity != start.saved->data) {
    throw ConfigError(where + ": these are not the data that " + start.checkpoint + " was trained on (now / then): `" +
                      identity + "` / `" + start.saved->data + "`; name those, or start a new run with " +
                      start_from(start.checkpoint));
  }
  if (start.saved->global_batch != global_batch) {
    throw ConfigError(start.checkpoint + ": was made with " + std::to_string(start.saved->global_batch) +
                      " rows a step, but this run has " + std::to_string(global_batch) +
                      "; adapt train_batch_size to the number of ranks");
  }
}

}  // namespace memsieve::trainer
