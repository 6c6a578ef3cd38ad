#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <trainer/checkpoint/run_folder.h>
#include <trainer/rooms.h>
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

void RunFolder::make(const std::string& where) const {
  std::error_code error;
  fs::create_directories(path_, error);
  if (error || !fs::is_directory(path_, error)) {
    throw ConfigError(where + ": folder " + path_ + " cannot be made (" + error.message() +
                      "); choose another with --set output_dir=FOLDER");
  }
  if (access(path_.c_str(), W_OK | X_OK) != 0) {
    throw ConfigError(where + ": folder " + path_ +
                      " cannot be written to; change its permissions or choose another with "
                      "--set output_dir=FOLDER");
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
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(file("checkpoints"), error)) {
    const std::string name = entry.path().filename();
    if (name.rfind("step-", 0) != 0 || name.find_first_not_of("0123456789", 5) != std::string::npos) continue;
    if (name.size() > 5 && name.size() < 20) steps.push_back(std::stoll(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
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
    fs::rename(checkpoint(step), aside, error);
    if (error) throw DataError(checkpoint(step) + ": cannot be renamed: " + error.message());
  }
}

void RunFolder::remove_checkpoints_ending(const std::string& ending) const {
  std::error_code error;
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(file("checkpoints"), error)) {
    if (entry.path().extension() == ending) found.push_back(entry.path());
  }
  for (const auto& path : found) fs::remove_all(path, error);
}

void RunFolder::tidy() const {
  remove_checkpoints_ending(".tmp");
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
  std::ifstream in(file("metrics.jsonl"));
  std::string kept;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;  // a torn last line
    if (json["step"].get<int64_t>() < step) kept += line + "\n";
  }
  write_text_atomically(file("metrics.jsonl"), kept);
}

}  // namespace memsieve::trainer
