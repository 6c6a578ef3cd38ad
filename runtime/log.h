#pragma once
// What the user sees: rank 0 says what happens, the others only what goes wrong. No spdlog header outside log.cpp.

#include <cstdint>
#include <string>

namespace memsieve::runtime {

/// Until this is called, messages come from rank 0 of 1.
void log_as(int rank, int world_size);
void log_info(const std::string& message);
/// on every rank; other ranks' lines start with their number
void log_warning(const std::string& message);
void log_error(const std::string& message);

/// One line that rewrites itself on a terminal; elsewhere a plain line every `every` steps. Silent on ranks other
/// than 0.
class Progress {
 public:
  Progress(std::string title, int64_t total, int64_t every);
  ~Progress();
  /// `done` of the total are finished; `note` is shown behind it.
  void show(int64_t done, const std::string& note);
  /// Ends the rewritten line, so that other output starts on a fresh one.
  void pause();

 private:
  std::string title_;
  int64_t total_, every_, first_ = -1;
  double started_ = 0;
  bool open_ = false;
};

}  // namespace memsieve::runtime
