#include <trainer/loop/step_log.h>

#include <algorithm>
#include <cstdio>

namespace memsieve::trainer {

namespace {

/// An average that begins with the first value.
void smooth(double& average, double value) {
  average = average < 0 ? value : 0.98 * average + 0.02 * value;
}

}  // namespace

StepLog::StepLog(const Options& options, MetricsWriter& metrics, Sieve* sieve, const Sampler& sampler)
    : forgets_(options.forgets),
      metrics_(metrics),
      sieve_(sieve),
      sampler_(sampler),
      progress_("step", options.max_train_steps, options.log_every) {}

void StepLog::begin(int64_t step, int64_t epoch) {
  begun_[step] = {std::chrono::steady_clock::now(), epoch};
}

void StepLog::add(int64_t step, const StepNumbers& n, Time arrived) {
  const auto began = begun_.extract(step).mapped();
  StepMetrics m;
  m.step = step;
  m.epoch = began.epoch;
  m.loss = n.loss_sum / static_cast<double>(sampler_.global_batch_size());
  m.lr = n.lr;
  m.grad_norm = n.grad_norm;
  m.loss_scale = n.loss_scale;
  m.forget_loss = n.forget_loss_sum / static_cast<double>(sampler_.global_batch_size());
  m.forget_weight = n.forget_weight;
  m.step_ms = std::chrono::duration<double, std::milli>(arrived - std::max(began.at, arrived_)).count();
  m.skipped = n.skipped > 0;
  m.nonfinite = n.nonfinite > 0;
  arrived_ = arrived;
  latest_ = m;
  smooth(smooth_loss_, m.loss);
  smooth(smooth_forget_loss_, m.forget_loss);
  unwritten_.push_back(m);
}

void StepLog::write() {
  for (; !unwritten_.empty(); unwritten_.pop_front()) metrics_.step(unwritten_.front());
  if (sieve_ == nullptr) return;
  for (const auto& report : sieve_->take_reports()) {
    metrics_.report(report);
    visits_ += report.rows + report.passed_over;
    dropped_ += report.dropped + report.passed_over;
  }
}

void StepLog::show(int64_t steps_done) {
  if (smooth_loss_ >= 0) progress_.show(steps_done, note());
}

std::string StepLog::note() const {
  char text[160];
  int n =
      std::snprintf(text, sizeof text, "loss %.4f  lr %.2e  %.0f ms/step", smooth_loss_, latest_.lr, latest_.step_ms);
  if (forgets_ && n > 0)
    n += std::snprintf(text + n, sizeof text - static_cast<size_t>(n), "  forget loss %.4f", smooth_forget_loss_);
  if (visits_ > 0 && n > 0) {
    std::snprintf(text + n, sizeof text - static_cast<size_t>(n), "  dropped %.1f%%",
                  100.0 * double(dropped_) / double(visits_));
  }
  return text;
}

}  // namespace memsieve::trainer
