#pragma once
// Numbers that travel from the device to the host without making it wait.

#include <ATen/core/Tensor.h>
#include <memsieve/detail/host_copy.h>

#include <chrono>
#include <deque>
#include <vector>

namespace memsieve::trainer {

/// Small vectors of numbers on their way to the host. From a GPU they arrive `lag` pushes later, at the same push on
/// every rank, so that decisions taken from them agree; from a CPU at once.
class Mailbox {
 public:
  struct Letter {
    int64_t step = 0;
    std::vector<double> values;
    /// when the host had them
    std::chrono::steady_clock::time_point arrived;
  };

  Mailbox(c10::Device device, size_t lag) : lag_(device.is_cpu() ? 0 : lag) {}
  /// `values`: 1-d float64 on the device.
  void push(int64_t step, const at::Tensor& values);
  /// The letters that are due, oldest first; with `all`, every one.
  std::vector<Letter> take(bool all = false);

 private:
  struct Pending {
    int64_t step;
    detail::HostCopy values;
  };
  size_t lag_;
  std::deque<Pending> pending_;
};

}  // namespace memsieve::trainer
