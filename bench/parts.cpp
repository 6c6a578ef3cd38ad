#include "parts.h"

#include <ATen/core/Tensor.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace memsieve::bench {

using trainer::Part;

const char* part_name(Part part) {
  constexpr std::array<const char*, kParts> names{"data", "forward", "probe", "backward", "reduce", "optimiser"};
  return names.at(static_cast<size_t>(part));
}

PartTimer::PartTimer(trainer::TrainStep& step, std::vector<at::Tensor> parameters, c10::Device device)
    : step_(step), parameters_(std::move(parameters)), device_(device) {
  step_.tell_parts([this](Part part) { ended(part); });
  for (auto& p : parameters_)
    hooks_.push_back(p.register_hook([this](const at::Tensor&) { last_gradient_ = now(Part::backward); }));
}

PartTimer::~PartTimer() {
  step_.tell_parts({});
  for (size_t i = 0; i < hooks_.size(); ++i) parameters_[i].remove_hook(hooks_[i]);
}

PartTimer::Mark PartTimer::now(std::optional<Part> ended) const {
  Mark mark{ended, std::chrono::steady_clock::now(), std::nullopt};
  if (device_.is_cpu()) return mark;
  mark.event.emplace(device_.type(), c10::EventFlag::BACKEND_DEFAULT);  // the flag that keeps times
  mark.event->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  return mark;
}

void PartTimer::begin() {
  marks_.push_back(now(std::nullopt));
  ++steps_;
}

void PartTimer::ended(Part part) {
  if (part == Part::backward && last_gradient_) {
    marks_.push_back(std::move(*last_gradient_));
    last_gradient_.reset();
    part = Part::reduce;
  }
  marks_.push_back(now(part));
}

double PartTimer::between(const Mark& from, const Mark& to) {
  if (from.event) return from.event->elapsedTime(*to.event);
  return std::chrono::duration<double, std::milli>(to.time - from.time).count();
}

PartTimes PartTimer::take() {
  PartTimes sum{};
  if (!marks_.empty() && marks_.back().event) marks_.back().event->synchronize();
  for (size_t i = 1; i < marks_.size(); ++i)
    if (marks_[i].ended) sum.at(static_cast<size_t>(*marks_[i].ended)) += between(marks_[i - 1], marks_[i]);
  for (double& value : sum) value /= static_cast<double>(steps_);
  marks_.clear();
  steps_ = 0;
  return sum;
}

}  // namespace memsieve::bench
