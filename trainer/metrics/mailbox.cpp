#include <ATen/ops/empty.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <trainer/metrics/mailbox.h>

namespace memsieve::trainer {

void Mailbox::push(int64_t step, const at::Tensor& values) {
  if (device_.is_cpu()) {
    pending_.push_back({step, values, std::nullopt});
    return;
  }
  at::Tensor host = at::empty(values.sizes(), values.options().device(at::kCPU).pinned_memory(true));
  host.copy_(values, /*non_blocking=*/true);
  c10::Event arrived(device_.type());
  arrived.record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  pending_.push_back({step, host, std::move(arrived)});
}

std::vector<Mailbox::Letter> Mailbox::take(bool all) {
  std::vector<Letter> letters;
  while (pending_.size() > (all ? 0 : lag_)) {
    Pending& oldest = pending_.front();
    if (oldest.arrived) oldest.arrived->synchronize();
    const auto* values = oldest.host.const_data_ptr<double>();
    letters.push_back({oldest.step, {values, values + oldest.host.numel()}, std::chrono::steady_clock::now()});
    pending_.pop_front();
  }
  return letters;
}

}  // namespace memsieve::trainer
