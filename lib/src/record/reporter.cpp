#include "record/reporter.h"

#include <ATen/ATen.h>
#include <memsieve/error.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "nan.h"

namespace memsieve {

namespace {
constexpr int64_t kLagOnGpu = 2;  // steps; long enough that waiting for the copy never stalls the queue of kernels

constexpr std::chrono::seconds kLastWait{10};  // for a step's records when the sieve goes away

constexpr size_t kReportsKept = 10000;  // of a loop that never asks for them

int64_t count_set(const at::Tensor& column) {
  const auto values = column.accessor<double, 1>();
  int64_t count = 0;
  for (int64_t i = 0; i < column.size(0); ++i) count += values[i] > 0;
  return count;
}

bool broken(const Gathered& host) {
  return count_set(host.failed) + count_set(host.bad_gradient) +
             count_set(host.training.select(1, RecordShape::nonfinite)) >
         0;
}

}  // namespace

Reporter::Reporter(const RecordOptions& options, const Setup& setup, const RecordShape& shape, int64_t rank,
                   const std::string& configuration, Arrival arrival)
    : options_(options),
      shape_(shape),
      arrival_(std::move(arrival)),
      held_out_size_(setup.held_out_size),
      lag_(setup.device.is_cpu() ? 0 : kLagOnGpu),
      group_id_(setup.group_id),
      path_(setup.ledger_path),
      rank_(rank),
      writes_ledger_(rank == 0 && !setup.ledger_path.empty()) {
  header_.run_id = setup.run_id;
  header_.configuration = configuration;
  header_.channels = options.channels;
}

Reporter::~Reporter() {
  if (!ledger_) return;
  // A loop that ends without flush(): its last steps are waited for, but not for ever, since a peer may never have come
  // to their gather.
  while (!pending_.empty()) {
    const Pending step = take_oldest();
    try {
      if (!step.records.wait_for(kLastWait)) break;
      digest({step.clock, step.records.wait(), step.passed_over});
    } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): nobody is left to be told
    }
  }
  try {
    if (!rows_.empty()) ledger_->append(std::move(rows_));
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): an earlier write failed and was reported then
  }
}

void Reporter::push(const Clock& clock, const at::Tensor& all, std::vector<int64_t> passed_over) {
  begun_ = true;
  pending_.push_back({clock, detail::HostCopy(all), std::move(passed_over)});
}

void Reporter::catch_up(bool everything) {
  const int64_t keep = everything ? 0 : lag_;
  while (static_cast<int64_t>(pending_.size()) > keep) {
    Pending step = take_oldest();
    digest({step.clock, step.records.wait(), std::move(step.passed_over)});
  }
}

Reporter::Pending Reporter::take_oldest() {
  Pending step = std::move(pending_.front());
  pending_.pop_front();
  return step;
}

void Reporter::digest(const Arrived& step) {
  const Gathered host = split(step.host, shape_);
  if (reports_.size() >= kReportsKept) reports_.pop_front();
  reports_.push_back(report(step, host));
  arrival_(step.clock.step, host);
  add_rows(step, host.training, kTrainingRow);
  add_rows(step, host.held_out, kHeldOutRow);
  add_rows(step, host.looks, kLook);
  add_passed_over(step);
  // Counted, since a loop's clock may go in strides.
  if (ledger_ && ++unwritten_steps_ >= options_.flush_every) {
    unwritten_steps_ = 0;
    try {
      ledger_->append(std::exchange(rows_, {}));
    } catch (const std::exception&) {
      write_error_ = std::current_exception();
    }
  }
  if (!ended_.empty())
    throw Error("step " + std::to_string(step.clock.step) + ": no update, since this sieve has ended (" + ended_ +
                "); make a new one and restore the last checkpoint");
  try {
    throw_errors(step, host);
  } catch (const std::exception& error) {
    ended_ = error.what();
    throw;
  }
}

void Reporter::blame(const std::exception_ptr& error) {
  if (!own_error_) own_error_ = error;
}

StepReport Reporter::report(const Arrived& step, const Gathered& host) const {
  StepReport r;
  r.step = step.clock.step;
  r.passed_over = static_cast<int64_t>(step.passed_over.size());
  r.drift = host.drift.accessor<double, 1>()[0];
  r.raw.resize(shape_.channels);
  double sum = 0;
  int64_t scored = 0;
  const auto lines = host.training.accessor<double, 2>();
  for (int64_t i = 0; i < host.training.size(0); ++i) {
    if (lines[i][RecordShape::present] == 0) continue;
    const double weight = lines[i][RecordShape::weight], score = lines[i][RecordShape::score];
    ++r.rows;
    r.weight += weight;
    r.dropped += weight == 0;
    r.downweighted += weight > 0 && weight < 1;
    r.probed += lines[i][RecordShape::probed] > 0;
    r.drop_level = lines[i][RecordShape::threshold];
    if (std::isfinite(score)) r.scores.push_back(static_cast<float>(score));
    for (int64_t c = 0; c < shape_.channels; ++c) {
      const double raw = lines[i][RecordShape::first_channel + c];
      if (std::isfinite(raw)) r.raw[c].push_back(static_cast<float>(raw));
    }
    if (!std::isnan(score)) {
      sum += score;
      ++scored;
    }
  }
  r.nonfinite = count_set(host.training.select(1, RecordShape::nonfinite)) +
                count_set(host.held_out.select(1, RecordShape::nonfinite)) +
                count_set(host.looks.select(1, RecordShape::nonfinite));
  r.mean_score = scored > 0 ? sum / static_cast<double>(scored) : kNaN;
  const bool others_fail =
      options_.fail_on_nonfinite && count_set(host.held_out.select(1, RecordShape::nonfinite)) +
                                            count_set(host.looks.select(1, RecordShape::nonfinite)) >
                                        0;
  r.skipped = r.weight == 0 || broken(host) || others_fail || !ended_.empty();
  return r;
}

void Reporter::add_rows(const Arrived& step, const at::Tensor& lines, LedgerKind kind) {
  const auto a = lines.accessor<double, 2>();
  const int64_t channels = shape_.channels;
  for (int64_t i = 0; i < lines.size(0); ++i) {
    if (a[i][RecordShape::present] == 0) continue;
    ++ledger_rows_;
    if (!writes_ledger_) continue;
    LedgerRow row;
    row.step = step.clock.step;
    row.epoch = static_cast<uint32_t>(step.clock.epoch);
    row.sample = static_cast<int64_t>(a[i][RecordShape::id]);
    if (kind == kHeldOutRow) row.sample %= held_out_size_;
    row.group = kind == kHeldOutRow ? row.sample : group_of(row.sample);
    row.timestep = static_cast<float>(a[i][RecordShape::timestep]);
    row.kind = kind;
    row.captioned = a[i][RecordShape::captioned] > 0;
    row.flagged = a[i][RecordShape::flagged] > 0;
    row.weight = static_cast<float>(a[i][RecordShape::weight]);
    row.score = static_cast<float>(a[i][RecordShape::score]);
    row.threshold = static_cast<float>(a[i][RecordShape::threshold]);
    row.alike = static_cast<float>(a[i][RecordShape::alike]);
    for (int64_t c = 0; c < channels; ++c) {
      row.raw.push_back(static_cast<float>(a[i][RecordShape::first_channel + c]));
      row.z.push_back(static_cast<float>(a[i][RecordShape::first_channel + channels + c]));
    }
    rows_.push_back(std::move(row));
  }
}

void Reporter::add_passed_over(const Arrived& step) {
  constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
  ledger_rows_ += static_cast<int64_t>(step.passed_over.size());
  if (!writes_ledger_) return;
  LedgerRow row;
  row.step = step.clock.step;
  row.epoch = static_cast<uint32_t>(step.clock.epoch);
  row.kind = kPassedOver;
  row.captioned = 0;
  row.flagged = 1;
  row.weight = 0;
  row.timestep = row.score = row.threshold = row.alike = kNone;
  row.raw.assign(shape_.channels, kNone);
  row.z = row.raw;
  for (const int64_t sample : step.passed_over) {
    row.sample = sample;
    row.group = group_of(sample);
    rows_.push_back(row);
  }
}

void Reporter::throw_peer_error(const std::string& where, const at::Tensor& all) {
  const std::string error = first_error(all);
  if (error.empty()) return;
  const bool mine = all[rank_][RecordShape::failed].item<double>() > 0;
  const auto cause = std::exchange(own_error_, nullptr);
  throw PeerError(where + error, mine ? cause : nullptr);
}

void Reporter::throw_errors(const Arrived& step, const Gathered& host) {
  throw_peer_error("step " + std::to_string(step.clock.step) + ": ", step.host);
  const auto at_step = host.step.accessor<double, 1>();
  for (int64_t rank = 1; rank < host.step.size(0); ++rank) {
    if (at_step[rank] == at_step[0]) continue;
    throw PeerError("rank " + std::to_string(rank) + " ends step " + std::to_string(std::llround(at_step[rank])) +
                    ", but rank 0 step " + std::to_string(std::llround(at_step[0])) +
                    "; give end_step the same Clock::step on every rank");
  }
  if (!options_.fail_on_nonfinite) return;
  for (const auto* lines : {&host.training, &host.held_out, &host.looks}) {
    const auto a = lines->accessor<double, 2>();
    for (int64_t i = 0; i < lines->size(0); ++i) {
      if (a[i][RecordShape::nonfinite] == 0) continue;
      const auto id = static_cast<int64_t>(a[i][RecordShape::id]);
      const std::string who = lines == &host.held_out ? "held-out picture " + std::to_string(id % held_out_size_)
                                                      : "sample " + std::to_string(id);
      throw NonFiniteError("step " + std::to_string(step.clock.step) + ": " + who +
                           ": NaN or Inf in its prediction, magnitude or loss; the update was skipped (look at the "
                           "sample, lower the learning rate, or set on_nonfinite: skip)");
    }
  }
  if (count_set(host.bad_gradient) > 0) {
    throw NonFiniteError("step " + std::to_string(step.clock.step) +
                         ": NaN or Inf in the gradient, though every loss is finite; the update was skipped (lower the "
                         "learning rate, or set on_nonfinite: skip)");
  }
}

void Reporter::open_ledger(int64_t run_rows) {
  if (writes_ledger_ && !ledger_) ledger_ = std::make_unique<Ledger>(path_, header_, run_rows);
}

void Reporter::write_out() {
  if (!ledger_) return;
  ledger_->append(std::exchange(rows_, {}));
  ledger_->flush();
}

}  // namespace memsieve
