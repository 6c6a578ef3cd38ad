// Samples that the loop passes over, and looks at them.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "sieve_impl.h"
#include "to_device.h"

namespace memsieve {

at::Tensor Sieve::flagged(int64_t step) const {
  return impl_->flags.flagged(step);
}

void Sieve::pass_over(const std::vector<int64_t>& ids, const Clock& clock) {
  auto& s = *impl_;
  try {
    if (!s.judge.options().action.pass_over)
      bad_batch("pass_over() in step " + std::to_string(clock.step) + ", but action.pass_over is off");
    for (const int64_t id : ids) {
      if (id < 0 || id >= s.setup.dataset_size)
        bad_batch("sample id " + std::to_string(id) + " is out of range [0, " + std::to_string(s.setup.dataset_size) +
                  ")");
    }
    s.passed_over.insert(s.passed_over.end(), ids.begin(), ids.end());
  } catch (...) {
    s.fail(std::current_exception(), "passed over: ");
  }
}

std::vector<Flags::Planned> Sieve::Impl::own_looks(int64_t step) const {
  const auto& all = flags.looks(step);
  if (all.empty()) return {};
  std::vector<Flags::Planned> own;
  const int64_t from = communicator->rank() * shape.looks;
  for (int64_t place = from; place < from + shape.looks; ++place) {
    const bool planned = place < static_cast<int64_t>(all.size());
    own.push_back(planned ? all[static_cast<size_t>(place)] : flags.filler(step, place));
  }
  return own;
}

std::vector<Look> Sieve::looks(int64_t step) const {
  std::vector<Look> own;
  for (const auto& planned : impl_->own_looks(step)) own.push_back(planned.look);
  return own;
}

void Sieve::look(const Batch& batch, const Clock& clock) {
  auto& s = *impl_;
  Impl::Asking asking;
  try {
    const auto planned = s.own_looks(clock.step);
    if (planned.empty()) bad_batch("step " + std::to_string(clock.step) + " has no samples for this rank to look at");
    asking.rows = s.shape.looks;  // all are probed
    const int64_t rows = s.check_batch(batch, s.shape.looks);
    const auto ids = s.device_ids(batch, s.setup.dataset_size);
    std::vector<int64_t> wanted;
    std::vector<uint8_t> counted;
    for (const auto& one : planned) {
      wanted.push_back(one.look.id);
      counted.push_back(one.counted);
    }
    if (rows != static_cast<int64_t>(wanted.size()) || !at::equal(batch.sample_id, at::tensor(wanted, at::kLong)))
      bad_batch("sample_id must be what looks(" + std::to_string(clock.step) + ") names, in its order");
    const auto past = s.judge.recall_look(ids, s.signals.likeness(batch));
    s.record.put_looks(s.judged(batch, ids, past, clock.step, asking).lines,
                       to_device(at::tensor(counted, at::kByte), s.setup.device));
  } catch (...) {
    s.fail_asking(batch, asking, "look: ");
  }
}

void Sieve::Impl::end_looks(int64_t step) {
  try {
    flags.ended(step);
  } catch (...) {
    fail(std::current_exception());
  }
}

}  // namespace memsieve
