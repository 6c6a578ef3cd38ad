#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <trainer/checkpoint/checkpoint.h>
#include <trainer/checkpoint/run_folder.h>
#include <trainer/trainer_rooms.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

namespace memsieve::trainer {

namespace fs = std::filesystem;

constexpr const char* kAbandoned = ".abandoned";
constexpr const char* kDamaged = ".damaged";

std::string step_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step-%06lld", static_cast<long long>(step));
  return name;
}

std::string make_run_id() {
  std::random_device device;
  static const char* const digits = "0123456789abcdef";
  std::string id;
  for (int i = 0; i < 16; ++i) id += digits[device() % 16];
  return id;
}

namespace {

/// null if there is none or it cannot be read.
nlohmann::ordered_json read_run(const std::string& path) {
  detail::require_regular_file<DataError>(path);
  std::ifstream in(path);
  auto json = nlohmann::ordered_json::parse(in, nullptr, /*allow_exceptions=*/false);
  return json.is_object() ? json : nlohmann::ordered_json();
}

/// What lies in a folder; `error` if that cannot be known.
std::vector<fs::path> entries(const std::string& folder, std::error_code& error) {
  std::vector<fs::path> paths;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    paths.push_back(entry->path());
  return paths;
}

void rename_aside(const std::string& path, const std::string& aside) {
  std::error_code error;
  fs::rename(path, aside, error);
  if (error) throw DataError(path + ": cannot be renamed: " + error.message());
}

}  // namespace

std::optional<std::string> RunFolder::run_id() const {
  const auto json = read_run(file("run.json"));
  if (!json.contains("run_id") || !json["run_id"].is_string()) return std::nullopt;
  return json["run_id"].get<std::string>();
}

int64_t RunFolder::finished_steps() const {
  const auto json = read_run(file("run.json"));
  return json.contains("finished_steps") && json["finished_steps"].is_number_integer()
             ? json["finished_steps"].get<int64_t>()
             : 0;
}

void RunFolder::finish(int64_t steps) const {
  auto json = read_run(file("run.json"));
  json["finished_steps"] = steps;
  write_text_atomically(file("run.json"), json.dump(2) + "\n");
}

void RunFolder::refuse_if_used(const std::string& where) const {
  for (const char* name : {"run.json", "metrics.jsonl", "ledger.h5", "checkpoints", "samples"}) {
    std::error_code error;
    if (!fs::exists(file(name), error)) continue;
    const auto id = run_id();
    throw ConfigError(where + ": " + path_ + " holds " +
                      (id ? "run " + *id : "another run (" + std::string(name) + ")") +
                      "; continue it with --resume-from auto, or choose another folder with --set output_dir=FOLDER");
  }
}

void RunFolder::check(const std::string& where) const {
  const std::string remedy = "choose another with --set output_dir=FOLDER";
  std::error_code error;
  fs::path there = fs::absolute(path_);
  while (!fs::exists(there, error) && there != there.root_path()) there = there.parent_path();
  const bool is_folder = fs::is_directory(there, error);
  if (is_folder && access(there.c_str(), W_OK | X_OK) == 0) return;
  if (is_folder && fs::equivalent(there, path_, error)) {
    throw ConfigError(where + ": folder " + path_ + " cannot be written to; change its permissions or " + remedy);
  }
  throw ConfigError(where + ": folder " + path_ + " cannot be made (" + there.string() +
                    (is_folder ? " cannot be written to" : " is no folder") + "); " + remedy);
}

void RunFolder::make(const std::string& where) const {
  check(where);
  std::error_code error;
  fs::create_directories(path_, error);
  if (error || !fs::is_directory(path_, error)) {
    throw ConfigError(where + ": folder " + path_ + " cannot be made (" + error.message() +
                      "); choose another with --set output_dir=FOLDER");
  }
}

void RunFolder::write_run_files(const RunDescription& run) const {
  char started[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  const nlohmann::ordered_json json{{"run_id", run.run_id}, {"world_size", run.world_size}, {"device", run.device},
                                    {"started", started},   {"format", "memsieve-run"},     {"version", 1}};
  write_text_atomically(file("config.yaml"), run.config_yaml);
  write_text_atomically(file("run.json"), json.dump(2) + "\n");
}

std::vector<int64_t> RunFolder::checkpoints() const {
  std::vector<int64_t> steps;
  std::error_code error, ignored;
  for (const auto& path : entries(file("checkpoints"), error)) {
    const std::string name = path.filename();
    if (name.rfind("step-", 0) != 0 || name.size() <= 5 || name.size() >= 20) continue;
    if (name.find_first_not_of("0123456789", 5) != std::string::npos) continue;
    const int64_t step = std::stoll(name.substr(5));
    if (name == step_name(step) && fs::is_directory(path, ignored)) steps.push_back(step);
  }
  // "None" would mean that the run can be begun anew, so it must be sure.
  if (fs::is_symlink(file("checkpoints"), ignored) && !fs::exists(file("checkpoints"), ignored)) {
    throw DataError(file("checkpoints") + ": is a link to nothing; put back what it names, or choose another folder " +
                    "with --set output_dir=FOLDER");
  }
  const bool none = error == std::errc::no_such_file_or_directory ||
                    (error == std::errc::not_a_directory && !fs::exists(file("checkpoints"), ignored));
  if (error && !none) {
    throw DataError(file("checkpoints") + ": cannot be read: " + error.message() +
                    "; make it readable, or choose another folder with --set output_dir=FOLDER");
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

void RunFolder::put_back_replaced() const {
  std::error_code error;
  for (auto path : entries(file("checkpoints"), error)) {
    if (path.extension() != kReplaced) continue;
    const fs::path replaced = path;
    if (!fs::exists(path.replace_extension(), error) && !error) rename_aside(replaced, path);
  }
}

void RunFolder::set_aside_damaged(const std::vector<int64_t>& steps) const {
  std::error_code error;
  for (const int64_t step : steps) {
    std::string aside = checkpoint(step) + kDamaged;
    for (int i = 2; fs::exists(aside, error); ++i) aside = checkpoint(step) + kDamaged + "-" + std::to_string(i);
    rename_aside(checkpoint(step), aside);
  }
}

void RunFolder::rotate(int64_t limit, int64_t newest) const {
  if (limit == 0) return;
  auto steps = checkpoints();
  std::reverse(steps.begin(), steps.end());
  std::error_code error;
  int64_t kept = 0;
  for (const int64_t step : steps) {
    if (step > newest || kept++ < limit) continue;
    fs::remove_all(checkpoint(step), error);
  }
  remove_checkpoints_ending(kAbandoned);
}

void RunFolder::abandon_after(int64_t from) const {
  std::error_code error;
  for (const int64_t step : checkpoints()) {
    if (step <= from) continue;
    const std::string aside = checkpoint(step) + kAbandoned;
    fs::remove_all(aside, error);
    rename_aside(checkpoint(step), aside);
  }
}

void RunFolder::remove_checkpoints_ending(const std::string& ending) const {
  std::error_code error;
  for (const auto& path : entries(file("checkpoints"), error)) {
    if (path.extension() == ending) fs::remove_all(path, error);
  }
}

void RunFolder::tidy() const {
  remove_checkpoints_ending(kTemporary);
  remove_checkpoints_ending(kReplaced);
}

void RunFolder::forget() const {
  std::error_code error;
  tidy();
  fs::remove(file("checkpoints"), error);  // unless something is in it
  // run.json last: what a crash leaves of this is still known as a run without a checkpoint.
  for (const char* name : {"samples", "tensorboard", "ledger.h5", "metrics.jsonl", "run.json", "config.yaml"})
    fs::remove_all(file(name), error);
}

void RunFolder::trim_metrics(int64_t step) const {
  detail::require_regular_file<DataError>(file("metrics.jsonl"));
  std::error_code error;
  std::ifstream in(file("metrics.jsonl"));
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;  // a torn last line
    if (json["step"].get<int64_t>() < step) kept += line + "\n";
  }
  if (in.bad() || (!in.is_open() && fs::exists(file("metrics.jsonl"), error)))
    throw DataError(file("metrics.jsonl") + ": cannot be read; change its permissions, or move it away");
  write_text_atomically(file("metrics.jsonl"), kept);
}

}  // namespace memsieve::trainer
