#include "judge/flags.h"

#include <ATen/ATen.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>

#include <algorithm>

#include "judge/slots.h"

namespace memsieve {

namespace {

// of samples that are judged together one is looked at instead of so many
constexpr double kTogether = 16;

DataError wrong_state(const std::string& name, const std::string& what) {
  return DataError("sieve state: '" + name + "' " + what +
                   "; resume with the configuration that the checkpoint was made with");
}

}  // namespace

Flags::Flags(const JudgeOptions& options, const Setup& setup)
    : on_(options.action.pass_over),
      samples_(setup.dataset_size),
      slots_(setup.dataset_size),
      warmup_steps_(options.action.warmup_steps),
      revisit_(options.revisit) {
  if (!on_) return;
  if (options.evidence.pools_groups()) {
    slot_of_ = dense_groups(setup.group_id, slots_);
    members_.resize(slots_);
    for (int64_t sample = 0; sample < samples_; ++sample) members_[slot_of(sample)].push_back(sample);
  }
  settled_ = {std::vector<uint8_t>(slots_, 0), std::vector<double>(slots_, 1), std::vector<int64_t>(slots_, -1)};
}

void Flags::Table::apply(const Visit& visit) {
  flagged[visit.slot] = visit.flagged > 0;
  patience[visit.slot] = visit.patience;
  seen[visit.slot] = std::max(seen[visit.slot], visit.step);
}

void Flags::add(int64_t step, const Gathered& host) {
  if (!on_) return;
  for (const auto* lines : {&host.training, &host.looks}) {
    const auto line = lines->accessor<double, 2>();
    for (int64_t i = 0; i < lines->size(0); ++i) {
      if (line[i][RecordShape::present] == 0 || line[i][RecordShape::counted] == 0) continue;
      const double beyond = line[i][RecordShape::score] - line[i][RecordShape::threshold];
      const double together = line[i][RecordShape::together] > 0 ? kTogether : 1;
      recent_.push_back({step, slot_of(static_cast<int64_t>(line[i][RecordShape::id])),
                         static_cast<int64_t>(line[i][RecordShape::flagged] > 0),
                         together * (1 + (beyond > 0 ? beyond : 0))});
    }
  }
  // The next question is of step + 1 at the earliest.
  for (; !recent_.empty() && recent_.front().step <= step + 1 - kFlagLag; recent_.pop_front())
    settled_.apply(recent_.front());
}

void Flags::ended(int64_t step) {
  if (!on_) return;
  if (revisit_.looks(step)) {
    for (const auto& planned : looks(step)) {
      if (!planned.counted) continue;
      auto& seen = settled_.seen[slot_of(planned.look.id)];
      seen = std::max(seen, step);
    }
  }
  before_last_ = last_;
  last_ = step;
  planned_step_.reset();
}

void Flags::check_step(const char* call, int64_t step) const {
  if (!last_) return;
  const std::string where = "Sieve::" + std::string(call) + "(" + std::to_string(step) + "): ";
  if (step <= *last_)
    throw DataError(where + "this step has ended already; ask for step " + std::to_string(*last_ + 1) + " or later");
  // A GPU may still be at the last two steps.
  if (step - kFlagLag < before_last_.value_or(*last_ - 1)) return;
  throw DataError(where + "asked too early: the last step that ended is " + std::to_string(*last_) +
                  "; ask for at most " + std::to_string(kFlagLag - 3) +
                  " steps ahead of the one to come, and count steps one by one");
}

Flags::Table Flags::table_for(int64_t step) const {
  Table table = settled_;
  for (const auto& visit : recent_) {
    if (visit.step > step - kFlagLag) break;
    table.apply(visit);
  }
  return table;
}

at::Tensor Flags::flagged(int64_t step) const {
  at::Tensor out = at::zeros({samples_}, at::kBool);
  if (!on_) return out;
  check_step("flagged", step);
  if (step < warmup_steps_) return out;
  const Table table = table_for(step);
  auto* values = out.mutable_data_ptr<bool>();
  for (int64_t sample = 0; sample < samples_; ++sample) values[sample] = table.flagged[slot_of(sample)] > 0;
  return out;
}

int64_t Flags::sample_of(int64_t slot, int64_t step) const {
  if (members_.empty()) return slot;
  const auto& members = members_[slot];
  const uint64_t turn = detail::split_mix64(static_cast<uint64_t>(step)) + static_cast<uint64_t>(slot);
  return members[turn % members.size()];
}

const std::vector<Flags::Planned>& Flags::looks(int64_t step) const {
  if (planned_step_ == step) return planned_;
  planned_ = plan_looks(step);
  planned_step_ = step;
  return planned_;
}

std::vector<Flags::Planned> Flags::plan_looks(int64_t step) const {
  if (!on_ || !revisit_.looks(step)) return {};
  check_step("looks", step);
  // Looks further ahead would not know of those before them.
  if (last_ && step != *last_ + 1)
    throw DataError("Sieve::looks(" + std::to_string(step) + "): the step to come is " + std::to_string(*last_ + 1) +
                    "; ask for that one, and count steps one by one");
  const Table table = table_for(step);
  // Who has waited longest for its patience: those just beyond the level may be there by chance, and come sooner.
  std::vector<std::pair<double, int64_t>> waiting;
  for (int64_t slot = 0; slot < slots_ && step >= warmup_steps_; ++slot) {
    if (table.flagged[slot] == 0) continue;
    waiting.emplace_back(-static_cast<double>(step - table.seen[slot]) / table.patience[slot], slot);
  }
  const auto count = std::min(static_cast<int64_t>(waiting.size()), revisit_.rows);
  std::partial_sort(waiting.begin(), waiting.begin() + count, waiting.end());
  std::vector<Planned> planned;
  for (int64_t place = 0; place < revisit_.rows; ++place) {
    planned.push_back(filler(step, place));
    if (place >= count) continue;
    planned.back().look.id = sample_of(waiting[place].second, step);
    planned.back().counted = true;
  }
  return planned;
}

Flags::Planned Flags::filler(int64_t step, int64_t place) const {
  return {{place % samples_, stratified_time(step / revisit_.every, place, revisit_.rows), place}, false};
}

std::map<std::string, at::Tensor> Flags::state() const {
  if (!on_) return {};
  at::Tensor recent = at::empty({static_cast<int64_t>(recent_.size()), 4}, at::kDouble);
  auto* at = recent.mutable_data_ptr<double>();
  for (const auto& visit : recent_) {
    *at++ = static_cast<double>(visit.step);
    *at++ = static_cast<double>(visit.slot);
    *at++ = static_cast<double>(visit.flagged);
    *at++ = visit.patience;
  }
  return {{"flags", at::tensor(settled_.flagged, at::kByte)},
          {"flags_patience", at::tensor(settled_.patience, at::kDouble)},
          {"flags_seen", at::tensor(settled_.seen, at::kLong)},
          {"flags_recent", recent},
          {"flags_step", at::full({}, last_.value_or(-1), at::kLong)}};
}

void Flags::restore(const std::map<std::string, at::Tensor>& state) {
  if (!on_) return;
  const auto find = [&](const std::string& name, at::ScalarType type) {
    const auto it = state.find(name);
    if (it == state.end()) throw wrong_state(name, "is missing: it was made without action.pass_over");
    if (it->second.scalar_type() != type) throw wrong_state(name, "has another dtype");
    return it->second.to(at::kCPU).contiguous();
  };
  const at::Tensor flagged = find("flags", at::kByte), seen = find("flags_seen", at::kLong),
                   patience = find("flags_patience", at::kDouble), recent = find("flags_recent", at::kDouble);
  if (flagged.numel() != slots_ || seen.numel() != slots_ || patience.numel() != slots_)
    throw wrong_state("flags", "is of another data set");
  if (recent.numel() % 4 != 0) throw wrong_state("flags_recent", "has another shape");
  const auto* f = flagged.const_data_ptr<uint8_t>();
  const auto* s = seen.const_data_ptr<int64_t>();
  const auto* p = patience.const_data_ptr<double>();
  settled_ = {{f, f + slots_}, {p, p + slots_}, {s, s + slots_}};
  recent_.clear();
  const auto* r = recent.const_data_ptr<double>();
  for (int64_t i = 0; i < recent.numel(); i += 4) {
    if (!(r[i + 1] >= 0 && r[i + 1] < static_cast<double>(slots_)))
      throw wrong_state("flags_recent", "is of another data set");
    recent_.push_back(
        {static_cast<int64_t>(r[i]), static_cast<int64_t>(r[i + 1]), static_cast<int64_t>(r[i + 2]), r[i + 3]});
  }
  const int64_t last = find("flags_step", at::kLong).item<int64_t>();
  before_last_.reset();
  planned_step_.reset();
  last_ = last < 0 ? std::nullopt : std::optional<int64_t>(last);
}

}  // namespace memsieve
