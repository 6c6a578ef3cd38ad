#pragma once

namespace memsieve::runtime {

/// What of c10d's own log is left out.
enum class Quiet {
  /// all of it: each failed attempt to connect is told, and the one that counts is thrown
  all,
  /// warnings: whatever comes to the store's port that is no client makes several lines each
  warnings
};

/// While it lives, c10d logs less, unless TORCH_CPP_LOG_LEVEL is set. The level is the process's, and ranks may be
/// threads of it: the quietest that lives counts.
class QuietC10d {
 public:
  explicit QuietC10d(Quiet quiet);
  ~QuietC10d();
  QuietC10d(const QuietC10d&) = delete;
  QuietC10d& operator=(const QuietC10d&) = delete;

 private:
  Quiet quiet_;
};

}  // namespace memsieve::runtime
