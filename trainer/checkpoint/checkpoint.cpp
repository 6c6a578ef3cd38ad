#include <fcntl.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/checkpoint/content_hash.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

namespace memsieve::trainer {

namespace fs = std::filesystem;

namespace {

/// Of state.json. A larger one means that programs which read this one would misread it.
constexpr int64_t kVersion = 1;

using Json = nlohmann::ordered_json;

void sync_to_disk(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool done = fd >= 0 && fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) close(fd);
  if (!done) throw fs::filesystem_error("sync", path, {error, std::generic_category()});
}

/// Of the files of a checkpoint.
struct FileList {
  std::map<std::string, uint64_t> sizes;
  std::map<std::string, std::string> hashes;
};

FileList file_list(const fs::path& folder) {
  FileList files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = fs::relative(entry.path(), folder).string();
    files.sizes[name] = entry.file_size();
    files.hashes[name] = content_hash(entry.path());
  }
  return files;
}

/// Of the files; and of all that state.json says, but for this itself. Checkpoints of older versions have neither.
constexpr const char *kHashes = "crc32", *kOwnHash = "state_crc32";

std::string own_hash(Json json) {
  json.erase(kOwnHash);
  return text_hash(json.dump());
}

void write_parts(const fs::path& folder, const CheckpointState& state, const CheckpointParts& parts) {
  parts.save_weights((folder / parts.weights_name).string());
  if (parts.save_weights_ema) parts.save_weights_ema((folder / (parts.weights_name + "_ema")).string());
  fs::create_directories(folder / "scheduler");
  write_text_atomically((folder / "scheduler" / "scheduler_config.json").string(), parts.scheduler);
  save_safetensors((folder / "optimizer.safetensors").string(), parts.optimizer);
  if (parts.sieve) save_safetensors((folder / "sieve.safetensors").string(), *parts.sieve);
  const FileList files = file_list(folder);
  Json json{{"format", "memsieve-checkpoint"},
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
            {"files", files.sizes},
            {kHashes, files.hashes}};
  json[kOwnHash] = own_hash(json);
  write_text_atomically((folder / "state.json").string(), json.dump(2) + "\n");
}

constexpr const char* kOr = ", or from another checkpoint (--resume-from FOLDER)";
constexpr const char* kRemedy = "; resume from another checkpoint (--resume-from FOLDER)";

/// What the system says, and what to do about it.
std::string advice(const std::error_code& error) {
  const bool full =
      error == std::errc::no_space_on_device || error == std::errc::file_too_large || error.value() == EDQUOT;
  return error.message() +
         (full ? "; the disk or a quota is full: free some space and continue with --resume-from latest"
               : "; check the folder and its permissions, and continue with --resume-from latest");
}

/// Writes all of a checkpoint to `temporary` and renames it to `to`.
void write_and_rename(const fs::path& to, const fs::path& temporary, const CheckpointState& state,
                      const CheckpointParts& parts) {
  fs::remove_all(temporary);
  // Its parent is the run's folder, which must be there: if that was moved away, a new one would be no run.
  if (fs::create_directory(to.parent_path())) sync_to_disk(fs::absolute(to).parent_path().parent_path());
  fs::create_directory(temporary);
  write_parts(temporary, state, parts);
  std::vector<fs::path> written{temporary};
  for (const auto& entry : fs::recursive_directory_iterator(temporary)) written.push_back(entry.path());
  for (const auto& path : written) sync_to_disk(path);
  // One of the same step is replaced, but never missing for long: a removal takes longer than a rename.
  const fs::path replaced(to.string() + kReplaced);
  fs::remove_all(replaced);
  if (fs::exists(to)) fs::rename(to, replaced);
  fs::rename(temporary, to);
  sync_to_disk(to.parent_path());
  fs::remove_all(replaced);
}

/// Of a file that is gone or broken; others, like permissions, can be mended and must not cost a checkpoint.
bool is_damage(const std::error_code& error) {
  return error == std::errc::no_such_file_or_directory || error == std::errc::not_a_directory ||
         error == std::errc::is_a_directory || error == std::errc::io_error;
}

void check_files(const fs::path& folder, const FileList& files, Verify verify) {
  for (const auto& [name, size] : files.sizes) {
    const fs::path path = folder / name;
    std::error_code error;
    const auto found = fs::file_size(path, error);
    if (is_damage(error)) throw DamagedCheckpoint(path.string() + ": is missing from the checkpoint");
    if (error) throw DataError(path.string() + ": cannot be read: " + error.message() + kRemedy);
    if (found != size) {
      throw DamagedCheckpoint(path.string() + ": is torn: " + std::to_string(found) + " bytes instead of " +
                              std::to_string(size));
    }
  }
  if (verify == Verify::sizes) return;
  for (const auto& [name, hash] : files.hashes) {
    const std::string path = folder / name;
    try {
      if (content_hash(path) != hash)
        throw DamagedCheckpoint(path + ": is damaged: its content is not what was written (CRC-32)");
    } catch (const std::system_error& error) {
      if (is_damage(error.code())) throw DamagedCheckpoint(path + ": is damaged: " + error.code().message());
      throw DataError(path + ": cannot be read: " + error.code().message() + kRemedy);
    }
  }
}

/// Throws nlohmann's exceptions for what is no checkpoint's state.
CheckpointState state_from(const Json& json, FileList& files) {
  CheckpointState state;
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
  files.sizes = json.at("files").get<std::map<std::string, uint64_t>>();
  files.hashes = json.value(kHashes, files.hashes);
  return state;
}

}  // namespace

DamagedCheckpoint::DamagedCheckpoint(const std::string& reason) : DataError(reason + kRemedy), reason_(reason) {}

void write_checkpoint(const std::string& folder, const CheckpointState& state, const CheckpointParts& parts) {
  const std::string temporary = folder + kTemporary;
  std::error_code ignored;
  try {
    write_and_rename(folder, temporary, state, parts);
  } catch (const std::system_error& error) {  // of std::filesystem, too
    fs::remove_all(temporary, ignored);
    throw DataError(folder + ": checkpoint cannot be written: " + advice(error.code()));
  } catch (...) {
    fs::remove_all(temporary, ignored);  // on a full disk it would be in the way of all else
    throw;
  }
}

CheckpointState read_checkpoint_state(const std::string& folder, Verify verify) {
  const fs::path state_path = fs::path(folder) / "state.json";
  std::error_code error;
  if (!fs::is_directory(folder, error)) throw DataError(folder + ": no such checkpoint folder" + kRemedy);
  const auto status = fs::status(state_path, error);
  if (fs::status_known(status) && !fs::is_regular_file(status))
    throw DamagedCheckpoint(state_path.string() + ": is missing, so this is no whole checkpoint");
  std::ifstream in(state_path);
  if (!in)
    throw DataError(state_path.string() + ": cannot be read: " + std::generic_category().message(errno) + kRemedy);
  const std::string torn = state_path.string() + ": is torn or no checkpoint's state";
  CheckpointState state;
  FileList files;
  try {
    const auto json = Json::parse(in);
    if (const auto version = json.at("version").get<int64_t>(); version > kVersion)
      throw DataError(state_path.string() + ": is of version " + std::to_string(version) +
                      ", but this program reads versions up to " + std::to_string(kVersion) +
                      "; resume with the version of memsieve that wrote it" + kOr);
    if ((json.contains(kHashes) || json.contains(kOwnHash)) && json.value(kOwnHash, "") != own_hash(json))
      throw DamagedCheckpoint(state_path.string() + ": is damaged: its content is not what was written (CRC-32)");
    state = state_from(json, files);
  } catch (const nlohmann::json::exception&) {
    throw DamagedCheckpoint(torn);
  }
  check_files(folder, files, verify);
  return state;
}

}  // namespace memsieve::trainer
