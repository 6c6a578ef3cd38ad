#pragma once
// metrics.jsonl, and numbers that travel from the device to the host without making it wait.

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <memsieve/sieve.h>

#include <deque>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::trainer {

/// Small vectors of numbers on their way to the host. From a GPU they arrive `lag` pushes later, at the same
/// push on every rank, so that decisions taken from them agree; from a CPU at once.
class Mailbox {
 public:
  struct Letter {
    int64_t step = 0;
    std::vector<double> values;
  };

  Mailbox(c10::Device device, size_t lag) : device_(device), lag_(device.is_cpu() ? 0 : lag) {}
  /// `values`: 1-d float64 on the device.
  void push(int64_t step, const at::Tensor& values);
  /// The letters that are due, oldest first; with `all`, every one.
  std::vector<Letter> take(bool all = false);

 private:
  struct Pending {
    int64_t step;
    at::Tensor host;
    std::optional<c10::Event> arrived;
  };
  c10::Device device_;
  size_t lag_;
  std::deque<Pending> pending_;
};

/// One optimiser step as metrics.jsonl records it.
struct StepMetrics {
  int64_t step = 0, epoch = 0;
  double loss = 0, lr = 0, grad_norm = 0, step_ms = 0;
  double loss_scale = 0;  ///< of fp16; 0 = none
  bool skipped = false, nonfinite = false;
};

/// Appends to metrics.jsonl (rank 0; elsewhere it does nothing). NaN and Inf are written as null.
class MetricsWriter {
 public:
  /// `path` empty = write nothing. Throws DataError if the file cannot be opened.
  MetricsWriter(const std::string& path, bool with_sieve, int64_t rows_per_step);
  /// Lines are written in the order of steps, once both the loop's numbers and the sieve's are there.
  void step(const StepMetrics& metrics);
  void report(const StepReport& report);
  void validation(int64_t step, double loss, int64_t rows);
  void samples(int64_t step, const std::string& file, const std::string& png);
  /// Throws DataError if something could not be written (a full disk).
  void flush();

 private:
  void write_ready();
  std::string path_;
  std::ofstream out_;
  bool with_sieve_;
  int64_t rows_per_step_;
  std::deque<StepMetrics> waiting_;
  std::map<int64_t, StepReport> reports_;
};

}  // namespace memsieve::trainer
