#pragma once
// Errors: one line that says where, what, and how to mend it.

#include <memsieve/export.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace memsieve {

/// Base of everything memsieve throws on purpose. `what()` is one line, fit to be shown to a user as it is.
class MEMSIEVE_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A key, value or combination in YAML, on the command line or in the environment is wrong.
class MEMSIEVE_API ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file or a batch does not hold what it must: missing, truncated, wrong shape or dtype, ids out of range.
class MEMSIEVE_API DataError : public Error {
 public:
  using Error::Error;
};

/// Some rank failed (this one or another). The message names the guilty rank; every rank throws it at the same step. Or
/// a peer is gone: then each rank throws it that waits for it in a collective.
class MEMSIEVE_API PeerError : public Error {
 public:
  explicit PeerError(const std::string& message, std::exception_ptr cause = nullptr)
      : Error(message), cause_(std::move(cause)) {}
  /// What was thrown on this rank (by c10d, if a peer is gone), null where another one is guilty.
  const std::exception_ptr& cause() const noexcept { return cause_; }

 private:
  std::exception_ptr cause_;
};

/// A NaN or Inf turned up in a signal or a loss. The message names the sample; every rank throws it at the same step.
class MEMSIEVE_API NonFiniteError : public Error {
 public:
  using Error::Error;
};

/// What an error says, as one line: without the back trace and the source places that torch adds to its own.
MEMSIEVE_API std::string one_line(const std::exception& error);
/// The same of anything that was thrown; "unknown exception" for what is no std::exception.
MEMSIEVE_API std::string one_line(const std::exception_ptr& error);

}  // namespace memsieve
