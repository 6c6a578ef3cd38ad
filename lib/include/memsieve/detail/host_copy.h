#pragma once
// A tensor on its way to the host without making it wait. Private to this repository: it is not installed.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <memory>
#include <thread>

namespace memsieve::detail {

/// Of a tensor on a GPU a copy in pinned memory that the current stream makes; of one on the CPU the tensor itself.
class HostCopy {
 public:
  explicit HostCopy(const at::Tensor& tensor) : host_(tensor) {
    const at::Device device = tensor.device();
    if (device.is_cpu()) return;
    host_ = at::empty(tensor.sizes(), tensor.options().device(at::kCPU).pinned_memory(true));
    host_.copy_(tensor, /*non_blocking=*/true);
    arrived_ = std::make_unique<c10::Event>(device.type());
    arrived_->record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }
  /// Waits until it is there.
  const at::Tensor& wait() const {
    if (arrived_) arrived_->synchronize();
    return host_;
  }
  /// The same, but gives up after `limit`; whether it is there.
  bool wait_for(std::chrono::milliseconds limit) const {
    const auto end = std::chrono::steady_clock::now() + limit;
    while (arrived_ && !arrived_->query()) {
      if (std::chrono::steady_clock::now() >= end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

 private:
  at::Tensor host_;
  /// null when there was nothing to wait for
  std::unique_ptr<c10::Event> arrived_;
};

}  // namespace memsieve::detail
