#include <c10/util/Logging.h>
#include <runtime/quiet_c10d.h>

#include <array>
#include <cstdlib>
#include <mutex>

namespace memsieve::runtime {

namespace {

std::mutex mutex;
std::array<int, 2> living{};
int level_before = 0;

/// Call with the mutex held.
void set_level() {
  if (std::getenv("TORCH_CPP_LOG_LEVEL")) return;
  if (living[static_cast<size_t>(Quiet::all)] > 0)
    FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  else if (living[static_cast<size_t>(Quiet::warnings)] > 0)
    FLAGS_caffe2_log_level = c10::GLOG_ERROR;
  else
    FLAGS_caffe2_log_level = level_before;
}

}  // namespace

QuietC10d::QuietC10d(Quiet quiet) : quiet_(quiet) {
  const std::lock_guard lock(mutex);
  if (living[0] + living[1] == 0) level_before = FLAGS_caffe2_log_level;
  ++living[static_cast<size_t>(quiet_)];
  set_level();
}

QuietC10d::~QuietC10d() {
  const std::lock_guard lock(mutex);
  --living[static_cast<size_t>(quiet_)];
  set_level();
}

}  // namespace memsieve::runtime
