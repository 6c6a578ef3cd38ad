#include <fcntl.h>
#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <trainer/checkpoint/checkpoint.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace memsieve::trainer {

namespace fs = std::filesystem;

namespace {

/// Of state.json. A larger one means that programs which read this one would misread it.
constexpr int64_t kVersion = 1;

void sync_to_disk(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY);
  if (fd < 0 || fsync(fd) != 0) {
    if (fd >= 0) close(fd);
    throw DataError(path.string() + ": cannot be written to disk; check free space");
  }
  close(fd);
}

nlohmann::ordered_json file_list(const fs::path& folder) {
  nlohmann::ordered_json files = nlohmann::ordered_json::object();
  std::vector<fs::path> paths;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  for (const auto& path : paths) files[fs::relative(path, folder).string()] = fs::file_size(path);
  return files;
}

void write_parts(const fs::path& folder, const CheckpointState& state, const CheckpointParts& parts) {
  parts.save_weights((folder / parts.weights_name).string());
  if (parts.save_weights_ema) parts.save_weights_ema((folder / (parts.weights_name + "_ema")).string());
  fs::create_directories(folder / "scheduler");
  write_text_atomically((folder / "scheduler" / "scheduler_config.json").string(), parts.scheduler);
  save_safetensors((folder / "optimizer.safetensors").string(), parts.optimizer);
  if (parts.sieve) save_safetensors((folder / "sieve.safetensors").string(), *parts.sieve);
  const nlohmann::ordered_json json{{"format", "memsieve-checkpoint"},
                                    {"version", kVersion},
                                    {"step", state.step},
                                    {"seed", state.seed},
                                    {"world_size", state.world_size},
                                    {"global_batch", state.global_batch},
                                    {"nonfinite_in_a_row", state.nonfinite_in_a_row},
                                    {"stream_position", state.stream_position},
                                    {"run_id", state.run_id},
                                    {"has_ema", static_cast<bool>(parts.save_weights_ema)},
                                    {"has_sieve", parts.sieve.has_value()},
                                    {"meaning", state.meaning},
                                    {"base", state.base},
                                    {"data", state.data},
                                    {"files", file_list(folder)}};
  write_text_atomically((folder / "state.json").string(), json.dump(2) + "\n");
}

constexpr const char* kOr = ", or from another checkpoint (--resume-from FOLDER)";
constexpr const char* kRemedy = "; resume from another checkpoint (--resume-from FOLDER)";

}  // namespace

void write_checkpoint(const std::string& folder, const CheckpointState& state, const CheckpointParts& parts) {
  const fs::path to(folder), temporary(folder + ".tmp");
  try {
    fs::remove_all(temporary);
    fs::create_directories(temporary);
    write_parts(temporary, state, parts);
    std::vector<fs::path> written{temporary};
    for (const auto& entry : fs::recursive_directory_iterator(temporary)) written.push_back(entry.path());
    for (const auto& path : written) sync_to_disk(path);
    // One of the same step is replaced, but never missing for long: a removal takes longer than a rename.
    const fs::path replaced(folder + ".replaced");
    fs::remove_all(replaced);
    if (fs::exists(to)) fs::rename(to, replaced);
    fs::rename(temporary, to);
    fs::remove_all(replaced);
    sync_to_disk(to.parent_path());
  } catch (const fs::filesystem_error& error) {
    throw DataError(folder + ": checkpoint cannot be written: " + error.code().message() +
                    "; check free space and permissions");
  }
}

CheckpointState read_checkpoint_state(const std::string& folder) {
  const fs::path state_path = fs::path(folder) / "state.json";
  if (!fs::is_directory(folder)) throw DataError(folder + ": no such checkpoint folder" + kRemedy);
  detail::require_regular_file<DataError>(state_path.string());
  std::ifstream in(state_path);
  if (!in) throw DataError(state_path.string() + ": is missing, so this is no whole checkpoint" + kRemedy);
  CheckpointState state;
  nlohmann::json files;
  try {
    const auto json = nlohmann::json::parse(in);
    if (const auto version = json.at("version").get<int64_t>(); version > kVersion)
      throw DataError(state_path.string() + ": is of version " + std::to_string(version) +
                      ", but this program reads versions up to " + std::to_string(kVersion) +
                      "; resume with the version of memsieve that wrote it" + kOr);
    state.step = json.at("step").get<int64_t>();
    state.seed = json.at("seed").get<uint64_t>();
    state.world_size = json.at("world_size").get<int64_t>();
    state.global_batch = json.at("global_batch").get<int64_t>();
    state.nonfinite_in_a_row = json.at("nonfinite_in_a_row").get<int64_t>();
    state.stream_position = json.value("stream_position", state.step * state.global_batch);
    state.run_id = json.at("run_id").get<std::string>();
    state.meaning = json.at("meaning").get<std::string>();
    state.base = json.value("base", "");
    state.data = json.value("data", "");
    state.has_ema = json.at("has_ema").get<bool>();
    state.has_sieve = json.at("has_sieve").get<bool>();
    files = json.at("files").get<std::map<std::string, uint64_t>>();
  } catch (const nlohmann::json::exception&) {
    throw DataError(state_path.string() + ": is torn or no checkpoint's state" + kRemedy);
  }
  for (const auto& [name, size] : files.items()) {
    const fs::path path = fs::path(folder) / name;
    std::error_code error;
    const auto found = fs::file_size(path, error);
    if (error) throw DataError(path.string() + ": is missing from the checkpoint" + kRemedy);
    if (found != size.get<uint64_t>()) {
      throw DataError(path.string() + ": is torn: " + std::to_string(found) + " bytes instead of " +
                      std::to_string(size.get<uint64_t>()) + kRemedy);
    }
  }
  return state;
}

}  // namespace memsieve::trainer
