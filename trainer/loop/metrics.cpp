#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <memsieve/error.h>
#include <trainer/loop/metrics.h>

#include <limits>
#include <nlohmann/json.hpp>

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
    letters.push_back({oldest.step, {values, values + oldest.host.numel()}});
    pending_.pop_front();
  }
  return letters;
}

MetricsWriter::MetricsWriter(const std::string& path, bool with_sieve, int64_t rows_per_step)
    : path_(path), with_sieve_(with_sieve), rows_per_step_(rows_per_step) {
  if (path_.empty()) return;
  out_.open(path_, std::ios::app);
  if (!out_) throw DataError(path_ + ": cannot be written; check permissions and free space");
}

void MetricsWriter::step(const StepMetrics& metrics) {
  if (path_.empty()) return;
  waiting_.push_back(metrics);
  write_ready();
}

void MetricsWriter::report(const StepReport& report) {
  if (path_.empty()) return;
  reports_[report.step] = report;
  write_ready();
}

void MetricsWriter::write_ready() {
  while (!waiting_.empty()) {
    const StepMetrics& m = waiting_.front();
    StepReport r;
    r.rows = rows_per_step_;
    r.mean_score = r.drop_level = std::numeric_limits<double>::quiet_NaN();
    if (with_sieve_) {
      const auto found = reports_.find(m.step);
      if (found == reports_.end()) return;
      r = found->second;
      reports_.erase(found);
    }
    nlohmann::ordered_json json{{"kind", "step"},
                                {"step", m.step},
                                {"epoch", m.epoch},
                                {"loss", m.loss},
                                {"lr", m.lr},
                                {"grad_norm", m.grad_norm},
                                {"step_ms", m.step_ms},
                                {"rows", r.rows},
                                {"dropped", r.dropped},
                                {"downweighted", r.downweighted},
                                {"probed", r.probed},
                                {"nonfinite", r.nonfinite},
                                {"nonfinite_gradient", m.nonfinite},
                                {"mean_score", r.mean_score},
                                {"drop_level", r.drop_level},
                                {"skipped", m.skipped}};
    if (m.loss_scale > 0) json["loss_scale"] = m.loss_scale;
    out_ << json.dump() << "\n";
    waiting_.pop_front();
  }
}

void MetricsWriter::validation(int64_t step, double loss, int64_t rows) {
  if (path_.empty()) return;
  out_
      << nlohmann::ordered_json{{"kind", "validation"}, {"step", step}, {"loss", loss}, {"rows", rows}}.dump()
      << "\n";
}

void MetricsWriter::samples(int64_t step, const std::string& file, const std::string& png) {
  if (path_.empty()) return;
  out_ << nlohmann::ordered_json{{"kind", "samples"}, {"step", step}, {"file", file}, {"png", png}}.dump()
       << "\n";
}

void MetricsWriter::flush() {
  if (path_.empty()) return;
  out_.flush();
  if (!out_) throw DataError(path_ + ": cannot be written any more; is the disk full?");
}

}  // namespace memsieve::trainer
