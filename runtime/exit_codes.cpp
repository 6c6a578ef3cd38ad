#include <c10/util/Exception.h>
#include <memsieve/error.h>
#include <runtime/exit_codes.h>
#include <runtime/group.h>
#include <yaml-cpp/exceptions.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <ios>
#include <new>
#include <nlohmann/json.hpp>

namespace memsieve::runtime {

namespace {

/// What torch throws where the machine has no memory left is a c10::Error like many others.
bool is_out_of_host_memory(const std::exception& error) {
  return dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
         std::strstr(error.what(), "DefaultCPUAllocator: can't allocate memory") != nullptr;
}

/// What reading or writing a file came to, of which no place in our code has made a DataError.
bool is_file_failure(const std::exception& error) {
  return dynamic_cast<const nlohmann::json::exception*>(&error) != nullptr ||
         dynamic_cast<const std::filesystem::filesystem_error*>(&error) != nullptr ||
         dynamic_cast<const std::ios_base::failure*>(&error) != nullptr;
}

constexpr const char* kLessMemory =
    "; lower train_batch_size and raise gradient_accumulation_steps as much, or set gradient_checkpointing: "
    "true, mixed_precision: bf16 or a lora section";

std::string text_of(const std::exception& error, const std::string& where) {
  if (is_out_of_host_memory(root_cause(error)))
    return where + ": this machine's memory does not suffice" + kLessMemory + "; or lower data.cache_mb";
  if (const auto* full = dynamic_cast<const c10::OutOfMemoryError*>(&root_cause(error))) {
    // "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ..."
    const std::string said = full->what_without_backtrace();
    return said.substr(0, said.find(". GPU")) + kLessMemory;
  }
  if (dynamic_cast<const Error*>(&error) != nullptr) return error.what();
  return is_peer_failure(error) ? peer_failure_line(where, error) : where + ": " + one_line(error);
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
  if (is_out_of_host_memory(error) || dynamic_cast<const YAML::Exception*>(&error) != nullptr) return kUsageError;
  if (dynamic_cast<const DataError*>(&error) != nullptr || is_file_failure(error)) return kDataFailure;
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
