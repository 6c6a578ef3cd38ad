#include <c10/util/Exception.h>
#include <memsieve/error.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>

#include <algorithm>

namespace memsieve::runtime {

namespace {

std::string text_of(const std::exception& error, const std::string& where) {
  if (const auto* full = dynamic_cast<const c10::OutOfMemoryError*>(&root_cause(error))) {
    // "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ..."
    const std::string said = full->what_without_backtrace();
    return said.substr(0, said.find(". GPU")) +
           "; lower train_batch_size and raise gradient_accumulation_steps as much, or set gradient_checkpointing: "
           "true, mixed_precision: bf16 or a lora section";
  }
  if (dynamic_cast<const Error*>(&error) != nullptr) return error.what();
  return is_peer_failure(error) ? peer_failure_line(where, error) : one_line(error);
}

}  // namespace

const std::exception& root_cause(const std::exception& error) {
  const auto* peer = dynamic_cast<const PeerError*>(&error);
  if (peer == nullptr || !peer->cause()) return error;
  try {
    std::rethrow_exception(peer->cause());
  } catch (const std::exception& cause) {
    return cause;  // `error` keeps it alive
  } catch (...) {
    return error;
  }
}

ExitCode exit_code_of(const std::exception& error) {
  if (const auto& cause = root_cause(error); &cause != &error) return exit_code_of(cause);
  if (dynamic_cast<const ConfigError*>(&error) != nullptr) return kUsageError;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return kUsageError;
  if (dynamic_cast<const DataError*>(&error) != nullptr) return kDataFailure;
  if (dynamic_cast<const NonFiniteError*>(&error) != nullptr) return kDiverged;
  if (is_peer_failure(error)) return kPeerFailure;
  return kOtherError;
}

std::string error_line(const std::exception& error, const std::string& where) {
  std::string line = text_of(error, where);
  line.erase(std::find(line.begin(), line.end(), '\n'), line.end());
  return line;
}

}  // namespace memsieve::runtime
