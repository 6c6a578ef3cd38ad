#pragma once
// What a run tells of itself while it goes on: metrics.jsonl, and the same for TensorBoard.

#include <memsieve/sieve.h>
#include <trainer/metrics/tensorboard/event_file.h>
#include <trainer/trainer_rooms.h>

#include <chrono>
#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

/// One optimiser step as metrics.jsonl records it.
struct StepMetrics {
  int64_t step = 0, epoch = 0;
  double loss = 0, lr = 0, grad_norm = 0, step_ms = 0;
  /// of fp16; 0 = none
  double loss_scale = 0;
  /// of the rows to forget
  double forget_loss = 0, forget_weight = 0;
  bool skipped = false, nonfinite = false;
};

/// Where a MetricsWriter writes; all on rank 0.
struct MetricsOptions {
  /// "" = write nothing at all
  std::string jsonl;
  /// folder of event files for TensorBoard, "" = none
  std::string events;
  int64_t first_step = 0;
  int64_t rows_per_step = 0;
  /// of the sieve (Sieve::channels()); nothing = no sieve
  std::optional<std::vector<std::string>> channels;
  /// visits are passed over, and told
  bool passes_over = false;
  /// each step says by how much the set as a whole is memorised
  bool drifts = false;
  /// each step says what it forgets
  bool forgets = false;
};

/// Appends to metrics.jsonl (rank 0; elsewhere it does nothing). NaN and Inf are written as null. Event files get the
/// same numbers under train/KEY, sieve/KEY and validation/KEY, and besides the share of dropped rows, histograms of the
/// rows' scores, and the sheets of drawn pictures.
class MetricsWriter {
 public:
  /// Throws DataError if a file cannot be opened.
  explicit MetricsWriter(MetricsOptions options);
  /// Lines are written in the order of steps, once both the loop's numbers and the sieve's are there.
  void step(const StepMetrics& metrics);
  void report(const StepReport& report);
  void validation(int64_t step, double loss, int64_t rows);
  /// `file` and `png` are relative to the folder of metrics.jsonl.
  void samples(int64_t step, const std::string& file, const std::string& png);
  /// Throws DataError if something could not be written (a full disk).
  void flush();

 private:
  void write_ready();
  void write_line(const std::string& line);
  void add_rows(const StepReport& report);
  void write_histograms();

  MetricsOptions options_;
  std::ofstream out_;
  std::optional<EventFile> events_;
  std::deque<StepMetrics> waiting_;
  std::map<int64_t, StepReport> reports_;
  /// tag -> of the steps since the last histogram
  std::map<std::string, std::vector<float>> rows_;
  int64_t last_step_ = 0;
  std::chrono::steady_clock::time_point flushed_{};
};

}  // namespace memsieve::trainer
