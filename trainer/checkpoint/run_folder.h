#pragma once
// The folder a run writes to. One run each; nothing in it is ever overwritten without being asked for.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

/// "step-000880".
std::string step_name(int64_t step);

/// What a run's folder says of it.
struct RunDescription {
  std::string run_id;
  int64_t world_size = 1;
  std::string device;
  /// the resolved configuration
  std::string config_yaml;
};

class RunFolder {
 public:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string checkpoint(int64_t step) const { return file("checkpoints/" + step_name(step)); }

  /// Throws ConfigError if the folder holds a run. `where` ("run.yaml:3: output_dir") begins the message.
  void refuse_if_used(const std::string& where) const;
  /// Throws ConfigError if the folder could not be made, or not be written to. Touches nothing.
  void check(const std::string& where) const;
  /// Makes the folder after such a check. Throws ConfigError.
  void make(const std::string& where) const;
  /// The run_id in run.json, or nullopt if there is no (readable) run.json.
  std::optional<std::string> run_id() const;
  /// Writes run.json and config.yaml.
  void write_run_files(const RunDescription& run) const;
  /// Notes in run.json that the run has done all its steps and what comes after them.
  void finish(int64_t steps) const;
  /// What finish() noted since the last write_run_files(), or 0.
  int64_t finished_steps() const;

  /// Steps of the checkpoints there, ascending: folders under a checkpoint's name, whatever else lies beside them.
  /// Throws DataError if it cannot be known.
  std::vector<int64_t> checkpoints() const;
  /// Brings back a checkpoint that was being replaced when its run was killed.
  void put_back_replaced() const;
  /// Gives checkpoints that are damaged the ending ".damaged"; nothing removes them.
  void set_aside_damaged(const std::vector<int64_t>& steps) const;
  /// When resuming from step `from`: later checkpoints belong to a part of the run that is given up. They get the
  /// ending ".abandoned", so that "latest" does not go back to them.
  void abandon_after(int64_t from) const;
  /// After checkpoint `newest` was written: removes all older ones but limit - 1, and abandoned ones. `limit` 0 =
  /// removes none.
  void rotate(int64_t limit, int64_t newest) const;
  /// Removes temporary folders that a crash has left.
  void tidy() const;
  /// Removes what a run has written that ended before its first checkpoint.
  void forget() const;
  /// Keeps the lines of metrics.jsonl of steps before `step`; the resumed run writes the others anew. Throws DataError.
  void trim_metrics(int64_t step) const;

 private:
  void remove_checkpoints_ending(const std::string& ending) const;

  std::string path_;
};

/// 16 random hexadecimal digits.
std::string make_run_id();

}  // namespace memsieve::trainer
