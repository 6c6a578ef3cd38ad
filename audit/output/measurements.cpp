#include <audit/output/measurements.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>

namespace memsieve::audit {

namespace fs = std::filesystem;

namespace {

constexpr const char* kFormat = "memsieve-audit";
constexpr int64_t kVersion = 1;

Json header_of(const Question& question) {
  Json inputs = Json::object();
  for (const auto& [name, identity] : question.inputs) inputs[name] = identity;
  return {{"format", kFormat},
          {"version", kVersion},
          {"command", question.command},
          {"asked", question.settings.yaml(Keys::binding)},
          {"inputs", inputs}};
}

/// Appends and waits for the disk.
void append(const std::string& path, const std::string& text) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  bool done = file >= 0;
  for (size_t at = 0; done && at < text.size();) {
    const ssize_t written = write(file, text.data() + at, text.size() - at);
    done = written > 0;
    at += done ? static_cast<size_t>(written) : 0;
  }
  done = done && fsync(file) == 0;
  const int error = errno;
  if (file >= 0) close(file);
  if (!done) throw DataError(path + ": cannot be written: " + std::strerror(error));
}

/// As one string, so that it can go to the other ranks.
std::string lines_of(const std::vector<Json>& rows) {
  std::string text;
  for (const Json& row : rows) text += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  return text;
}

std::vector<Json> rows_of(const std::string& text) {
  std::vector<Json> rows;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) rows.push_back(Json::parse(line));
  return rows;
}

/// Whether measurements under that first line answer the question. Throws ConfigError, DataError, Json::exception.
void require_same(const Json& header, const Question& question, const std::string& path) {
  const std::string other = "; name another --out, or remove the file";
  if (header.at("format") != kFormat || header.value("version", int64_t{0}) != kVersion)
    throw DataError(path + ": is of another program or version" + other);
  const auto command = header.at("command").get<std::string>();
  if (command != question.command)
    throw ConfigError(path + ": holds measurements of " + detail::printable(command) + ", not of " + question.command +
                      other);
  const auto differs = question.settings.difference_from(header.at("asked").get<std::string>(), path, Keys::binding);
  if (differs) throw ConfigError(path + ": was measured with other settings: " + differs->line() + other);
  for (const auto& [name, identity] : question.inputs) {
    const auto before = header.at("inputs").value(name, std::string("none"));
    if (before != identity)
      throw ConfigError(path + ": was measured on another " + name + " (" + detail::printable(before) + ", now " +
                        detail::printable(identity) + ")" + other);
  }
}

}  // namespace

Measurements::Measurements(const std::string& folder, const Question& question, Group& group)
    : path_(folder + "/measurements.jsonl") {
  std::string there;
  on_all_ranks(group, [&] {
    if (group.rank() != 0) return;
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) throw DataError(folder + ": cannot be made: " + error.message());
    lock(folder);
    if (!fs::exists(path_, error) || fs::is_empty(path_, error)) return;
    there = read_text_file(path_);
    // What follows the last end of line was being written when the audit ended.
    there.resize(there.rfind('\n') == std::string::npos ? 0 : there.rfind('\n') + 1);
    fs::resize_file(path_, there.size(), error);
    if (error) throw DataError(path_ + ": cannot be written: " + error.message());
  });
  there = group.broadcast(there);
  on_all_ranks(group, [&] {
    if (!there.empty()) take(there, question);
    if (there.empty() && group.rank() == 0) append(path_, lines_of({header_of(question)}));
  });
  if (!rows_.empty()) log_info(path_ + ": " + std::to_string(rows_.size()) + " measurements are there already");
}

void Measurements::lock(const std::string& folder) {
  const std::string file = folder + "/audit.lock";
  const auto state = lock_.take(file);
  if (state == detail::FileLock::State::unsupported)
    log_warning(folder + ": its file system has no locks, so that a second audit in this folder would not be noticed");
  if (state == detail::FileLock::State::failed) throw DataError(file + ": cannot be written: " + std::strerror(errno));
  if (state != detail::FileLock::State::taken) return;
  throw ConfigError(folder + ": is being written to by " + detail::FileLock::owner(file).text() +
                    "; wait for it or end it, or name another --out");
}

void Measurements::take(const std::string& text, const Question& question) {
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const bool head = ++number == 1;
    const std::string place = path_ + ":" + std::to_string(number);
    if (!row.is_object() || !row.contains(head ? "format" : "unit"))
      throw DataError(place + ": is no measurement of memsieve-audit; name another --out");
    try {
      if (head) {
        require_same(row, question, path_);
        continue;
      }
      units_.insert(row["unit"].get<std::string>());
      rows_.push_back(std::move(row));
    } catch (const Json::exception&) {
      throw DataError(place + ": is damaged; name another --out");
    }
  }
}

void Measurements::add(const std::vector<Json>& rows, Group& group) {
  std::vector<Json> fresh;
  for (const Json& row : rows)
    if (units_.insert(row.at("unit").get<std::string>()).second) fresh.push_back(row);
  on_all_ranks(group, [&] {
    if (group.rank() == 0 && !fresh.empty()) append(path_, lines_of(fresh));
  });
  rows_.insert(rows_.end(), fresh.begin(), fresh.end());
}

void read_rows(const std::vector<Json>& rows, const std::function<void(const Json& row)>& read) {
  for (const Json& row : rows) {
    const auto damaged = [&row] {
      return DataError("measurements.jsonl: a value of " + detail::printable(row.value("unit", "a row")) +
                       " is missing or of another kind; take out its line, and it is measured again");
    };
    try {
      read(row);
    } catch (const Json::exception&) {
      throw damaged();
    } catch (const std::out_of_range&) {
      throw damaged();
    }
  }
}

namespace {

/// Rows of `batch` with the names of their units first.
std::vector<Json> measured(const UnitBatch& batch) {
  std::vector<Json> named;
  const auto rows = batch.measure();
  for (size_t i = 0; i < rows.size(); ++i) {
    Json row{{"unit", batch.units.at(i)}};
    row.update(rows[i]);
    named.push_back(std::move(row));
  }
  return named;
}

}  // namespace

void measure_all(Measurements& measurements, const std::vector<UnitBatch>& batches, const std::string& title,
                 Group& group) {
  std::vector<const UnitBatch*> open;
  for (const UnitBatch& batch : batches) {
    const auto is_missing = [&](const std::string& unit) { return !measurements.has(unit); };
    if (std::any_of(batch.units.begin(), batch.units.end(), is_missing)) open.push_back(&batch);
  }
  if (open.empty()) return;
  const size_t ranks = static_cast<size_t>(group.world_size()), rank = static_cast<size_t>(group.rank());
  Progress progress(title + ": batch", static_cast<int64_t>(open.size()), 1);
  for (size_t begin = 0; begin < open.size(); begin += ranks) {
    std::string mine;
    on_all_ranks(group, [&] {
      if (begin + rank < open.size()) mine = lines_of(measured(*open[begin + rank]));
    });
    for (size_t root = 0; root < std::min(ranks, open.size() - begin); ++root)
      measurements.add(rows_of(group.broadcast(mine, static_cast<int>(root))), group);
    progress.show(static_cast<int64_t>(std::min(begin + ranks, open.size())), "");
  }
}

}  // namespace memsieve::audit
