#include "judge/slots.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace memsieve {

std::vector<int64_t> dense_groups(const std::vector<int64_t>& group_id, int64_t& count) {
  std::map<int64_t, int64_t> dense;
  std::vector<int64_t> slots;
  slots.reserve(group_id.size());
  for (int64_t group : group_id)
    slots.push_back(dense.try_emplace(group, static_cast<int64_t>(dense.size())).first->second);
  count = static_cast<int64_t>(dense.size());
  return slots;
}

Slots::Slots(const Setup& setup, const HeldOutOptions& held_out, bool pool_groups, int64_t ranks)
    : dataset_size_(setup.dataset_size), held_out_size_(setup.held_out_size), training_(setup.dataset_size) {
  if (pool_groups) slot_of_ = at::tensor(dense_groups(setup.group_id, training_), at::kLong).to(setup.device);
  const int64_t samples = setup.samples.value_or(dataset_size_);
  used_ = std::min(training_, samples);
  if (held_out.rows == 0) return;
  // As many pseudo-rows as make each one visited about as often as a training row, so that their evidence spans the
  // same stretch of training.
  const double visits_per_epoch =
      static_cast<double>(held_out.rows * samples) /
      static_cast<double>(setup.rows_per_micro_batch * setup.micro_batches * ranks * held_out.every);
  const auto copies = std::llround(visits_per_epoch / static_cast<double>(held_out_size_));
  pseudo_rows_ = std::max<int64_t>(1, copies) * held_out_size_;
}

at::Tensor Slots::of(const at::Tensor& ids, bool held_out) const {
  if (held_out) return ids + training_;
  return slot_of_.defined() ? slot_of_.index_select(0, ids) : ids;
}

at::Tensor Slots::picture(const at::Tensor& ids, bool held_out) const {
  return held_out ? ids.remainder(std::max<int64_t>(1, held_out_size_)) + dataset_size_ : ids;
}

}  // namespace memsieve
