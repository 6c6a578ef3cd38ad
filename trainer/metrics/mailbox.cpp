#include <trainer/metrics/mailbox.h>

namespace memsieve::trainer {

void Mailbox::push(int64_t step, const at::Tensor& values) {
  pending_.push_back({step, detail::HostCopy(values)});
}

std::vector<Mailbox::Letter> Mailbox::take(bool all) {
  std::vector<Letter> letters;
  while (pending_.size() > (all ? 0 : lag_)) {
    const Pending& oldest = pending_.front();
    const at::Tensor& host = oldest.values.wait();
    const auto* values = host.const_data_ptr<double>();
    letters.push_back({oldest.step, {values, values + host.numel()}, std::chrono::steady_clock::now()});
    pending_.pop_front();
  }
  return letters;
}

}  // namespace memsieve::trainer
