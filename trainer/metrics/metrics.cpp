#include <memsieve/error.h>
#include <trainer/metrics/metrics.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

namespace memsieve::trainer {

namespace {

using Json = nlohmann::ordered_json;
using Tagged = std::vector<std::pair<std::string, double>>;

constexpr int64_t kHistogramSteps = 100;  // rows of so many steps in one histogram
constexpr auto kFlushEvery = std::chrono::seconds(2);

Json line_of(const StepMetrics& m, const StepReport& r, const MetricsOptions& options) {
  Json json{{"kind", "step"},
            {"step", m.step},
            {"epoch", m.epoch},
            {"loss", m.loss},
            {"lr", m.lr},
            {"grad_norm", m.grad_norm},
            {"step_ms", m.step_ms},
            {"images_per_second", m.step_ms > 0 ? 1000 * static_cast<double>(r.rows) / m.step_ms : 0.0},
            {"rows", r.rows},
            {"dropped", r.dropped},
            {"downweighted", r.downweighted},
            {"probed", r.probed},
            {"nonfinite", r.nonfinite},
            {"nonfinite_gradient", m.nonfinite},
            {"mean_score", r.mean_score},
            {"drop_level", r.drop_level},
            {"skipped", m.skipped}};
  if (options.passes_over) json["passed_over"] = r.passed_over;
  if (options.drifts) json["drift"] = r.drift;
  if (options.forgets) {
    json["forget_loss"] = m.forget_loss;
    json["forget_weight"] = m.forget_weight;
  }
  if (m.loss_scale > 0) json["loss_scale"] = m.loss_scale;
  return json;
}

/// The numbers of a line under GROUP/KEY; what is not finite is left out.
Tagged tagged(const Json& line, const std::string& group, bool with_sieve) {
  static const std::set<std::string> of_the_sieve = {"dropped",    "downweighted", "probed",      "mean_score",
                                                     "drop_level", "nonfinite",    "passed_over", "drift"};
  Tagged out;
  for (const auto& [key, value] : line.items()) {
    if (key == "step" || !(value.is_number() || value.is_boolean())) continue;
    const bool sieves = of_the_sieve.count(key) > 0;
    const double number = value.is_boolean() ? double(value.get<bool>()) : value.get<double>();
    if (std::isfinite(number) && (with_sieve || !sieves))
      out.emplace_back((sieves ? "sieve" : group) + "/" + key, number);
  }
  return out;
}

}  // namespace

MetricsWriter::MetricsWriter(MetricsOptions options) : options_(std::move(options)) {
  if (options_.jsonl.empty()) return;
  out_.open(options_.jsonl, std::ios::app);
  if (!out_) throw DataError(options_.jsonl + ": cannot be written; check permissions and free space");
  if (!options_.events.empty()) events_.emplace(options_.events, options_.first_step);
}

void MetricsWriter::step(const StepMetrics& metrics) {
  if (options_.jsonl.empty()) return;
  waiting_.push_back(metrics);
  write_ready();
}

void MetricsWriter::report(const StepReport& report) {
  if (options_.jsonl.empty()) return;
  reports_[report.step] = report;
  write_ready();
}

void MetricsWriter::write_ready() {
  while (!waiting_.empty()) {
    const StepMetrics& m = waiting_.front();
    StepReport r;
    r.rows = options_.rows_per_step;
    r.mean_score = r.drop_level = std::numeric_limits<double>::quiet_NaN();
    if (options_.channels) {
      const auto found = reports_.find(m.step);
      if (found == reports_.end()) return;
      r = std::move(found->second);
      reports_.erase(found);
    }
    const Json line = line_of(m, r, options_);
    if (events_) {
      Tagged numbers = tagged(line, "train", options_.channels.has_value());
      if (options_.channels && r.rows > 0)
        numbers.emplace_back("sieve/dropped_fraction",
                             double(r.dropped + r.passed_over) / double(r.rows + r.passed_over));
      events_->scalars(m.step, numbers);
      last_step_ = m.step;
      if (options_.channels) add_rows(r);
      if ((m.step + 1) % kHistogramSteps == 0) write_histograms();
    }
    write_line(line.dump());
    waiting_.pop_front();
  }
}

void MetricsWriter::write_line(const std::string& line) {
  out_ << line << "\n";
  // So that a run can be watched, and one that is killed has told most of what it did.
  const auto now = std::chrono::steady_clock::now();
  if (now - flushed_ < kFlushEvery) return;
  flushed_ = now;
  out_.flush();
  if (events_) events_->flush();
}

void MetricsWriter::add_rows(const StepReport& report) {
  const auto add = [&](const std::string& tag, const std::vector<float>& values) {
    auto& rows = rows_[tag];
    rows.insert(rows.end(), values.begin(), values.end());
  };
  add("sieve/score", report.scores);
  for (size_t c = 0; c < report.raw.size(); ++c) add("sieve/raw_" + options_.channels->at(c), report.raw[c]);
}

void MetricsWriter::write_histograms() {
  for (auto& [tag, values] : rows_) {
    events_->histogram(last_step_, tag, values);
    values.clear();
  }
}

void MetricsWriter::validation(int64_t step, double loss, int64_t rows) {
  if (options_.jsonl.empty()) return;
  const Json line{{"kind", "validation"}, {"step", step}, {"loss", loss}, {"rows", rows}};
  if (events_) events_->scalars(step, tagged(line, "validation", false));
  write_line(line.dump());
}

void MetricsWriter::samples(int64_t step, const std::string& file, const std::string& png) {
  if (options_.jsonl.empty()) return;
  if (events_) events_->picture(step, "samples", (std::filesystem::path(options_.jsonl).parent_path() / png).string());
  write_line(Json{{"kind", "samples"}, {"step", step}, {"file", file}, {"png", png}}.dump());
}

void MetricsWriter::flush() {
  if (options_.jsonl.empty()) return;
  out_.flush();
  if (!out_) throw DataError(options_.jsonl + ": cannot be written any more; is the disk full?");
  if (!events_) return;
  write_histograms();  // a run that resumes from here does not see the rows again
  events_->flush();
}

}  // namespace memsieve::trainer
