#pragma once
// measurements.jsonl: what was measured, a line for each unit, so that an audit that was stopped goes on where it was.

#include <audit/config/audit_config.h>
#include <audit/audit_rooms.h>
#include <memsieve/detail/file_lock.h>
#include <runtime/group.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace memsieve::audit {

using Json = nlohmann::ordered_json;

/// What was asked: rows of another question are no answer to this one.
struct Question {
  std::string command;
  /// its binding keys count
  Settings settings;
  /// what the model, the prompts and other files are, by name: {"model", AuditedModel::identity}
  std::vector<std::pair<std::string, std::string>> inputs;
};

class Measurements {
 public:
  /// COLLECTIVE. Reads what FOLDER/measurements.jsonl has, or begins it; a line that was torn when an audit was killed
  /// is cut off. Rank 0 holds a lock on the folder as long as this lives. Throws ConfigError, naming what differs, for
  /// measurements that answer another question, and for a folder that another audit writes to; DataError for a file
  /// that is none of this program or cannot be written.
  Measurements(const std::string& folder, const Question& question, Group& group);

  bool has(const std::string& unit) const { return units_.count(unit) > 0; }
  /// Every row, with the unit's name as "unit", in the order of the file. The same on all ranks.
  const std::vector<Json>& rows() const { return rows_; }
  /// COLLECTIVE. Adds rows, the same on all ranks, those of units that are there left out; on the disk when it returns.
  void add(const std::vector<Json>& rows, Group& group);

 private:
  void take(const std::string& text, const Question& question);

  void lock(const std::string& folder);

  std::string path_;
  detail::FileLock lock_;
  std::vector<Json> rows_;
  std::set<std::string> units_;
};

/// Calls `read` with every row. A row that lacks what `read` asks of it, or holds something else there: DataError,
/// naming its unit.
void read_rows(const std::vector<Json>& rows, const std::function<void(const Json& row)>& read);

/// What is measured in one go: the names of its units, and a row for each, in their order. `measure` must depend on the
/// units alone.
struct UnitBatch {
  std::vector<std::string> units;
  std::function<std::vector<Json>()> measure;
};

/// COLLECTIVE. Measures the batches of which a unit is missing, dealt out to the ranks in turn, and adds their rows in
/// the order of the batches: the file is the same for any number of ranks. A batch that is there in part is measured
/// whole, so that its numbers are those of an audit that was never stopped. Shows progress under `title`.
void measure_all(Measurements& measurements, const std::vector<UnitBatch>& batches, const std::string& title,
                 Group& group);

}  // namespace memsieve::audit
