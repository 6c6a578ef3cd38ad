#include <ATen/ATen.h>
#include <trainer/loop/batch_plan.h>

#include <stdexcept>
#include <string>

namespace memsieve::trainer {

BatchPlan::BatchPlan(const Sampler& sampler, int64_t step, int64_t position)
    : sampler_(sampler), first_(step), next_position_(position) {}

void BatchPlan::add(const at::Tensor& flagged) {
  const auto* flags = flagged.const_data_ptr<bool>();
  Step step{next_position_, sampler_.fill(next_position_, [flags](int64_t id) { return flags[id]; })};
  next_position_ = step.batch.end;
  const std::lock_guard lock(mutex_);
  steps_.push_back(std::move(step));
}

void BatchPlan::forget_before(int64_t step) {
  const std::lock_guard lock(mutex_);
  for (; first_ < step && !steps_.empty(); ++first_) steps_.pop_front();
}

int64_t BatchPlan::end() const {
  const std::lock_guard lock(mutex_);
  return first_ + static_cast<int64_t>(steps_.size());
}

const BatchPlan::Step& BatchPlan::at(int64_t step) const {
  const int64_t index = step - first_;
  if (index < 0 || index >= static_cast<int64_t>(steps_.size()))
    throw std::logic_error("BatchPlan: step " + std::to_string(step) + " is not planned");
  return steps_[index];
}

std::vector<int64_t> BatchPlan::rows(int64_t step, int64_t micro, int64_t rank) const {
  const std::lock_guard lock(mutex_);
  const auto& ids = at(step).batch.ids;
  const auto from = ids.begin() + sampler_.place(micro, rank, 0);
  return {from, from + sampler_.rows_per_micro_batch()};
}

std::vector<int64_t> BatchPlan::passed_over(int64_t step) const {
  const std::lock_guard lock(mutex_);
  return at(step).batch.passed_over;
}

int64_t BatchPlan::position(int64_t step) const {
  const std::lock_guard lock(mutex_);
  return step == first_ + static_cast<int64_t>(steps_.size()) ? next_position_ : at(step).position;
}

}  // namespace memsieve::trainer
