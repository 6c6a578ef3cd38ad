#pragma once
// The folder a run writes to. One run each; nothing in it is ever overwritten without being asked for.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

/// "step-000880".
std::string step_name(int64_t step);

class RunFolder {
 public:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string checkpoint(int64_t step) const { return file("checkpoints/" + step_name(step)); }

  /// Throws ConfigError if the folder holds a run. `where` ("run.yaml:3: output_dir") begins the message.
  void refuse_if_used(const std::string& where) const;
  /// Makes the folder and tries whether it can be written to. Throws ConfigError.
  void make(const std::string& where) const;
  /// The run_id in run.json, or nullopt if there is no (readable) run.json.
  std::optional<std::string> run_id() const;
  /// Writes run.json and config.yaml.
  void describe(const std::string& run_id, int world_size, const std::string& device,
                const std::string& config_yaml) const;

  /// Steps of the checkpoints there, ascending. Folders still under a temporary name do not count.
  std::vector<int64_t> checkpoints() const;
  /// After checkpoint `newest` was written: removes all older ones but limit - 1, and later ones, which
  /// belong to a part of the run that was given up by resuming from before them. `limit` 0 = removes none.
  void rotate(int64_t limit, int64_t newest) const;
  /// Removes temporary folders that a crash has left.
  void tidy() const;
  /// Removes what a run has written that ended before its first checkpoint.
  void forget() const;
  /// Keeps the lines of metrics.jsonl of steps before `step`; the resumed run writes the others anew.
  void trim_metrics(int64_t step) const;

 private:
  std::string path_;
};

/// 16 random hexadecimal digits.
std::string make_run_id();

}  // namespace memsieve::trainer
