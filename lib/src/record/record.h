#pragma once
// The fixed-size record that each rank contributes to a step's only collective. Private to the library.
//
// One flat float64 tensor (float64 holds ids up to 2^53 exactly): a header, room for an error message, then one line
// for each training row and each held-out row that the configuration allows, used or not.

#include <ATen/core/Tensor.h>
#include <memsieve/batch.h>

#include <string>

namespace memsieve {

struct RecordShape {
  int64_t channels = 0;
  /// per rank: `rows` lines for each micro-batch
  int64_t micro_batches = 1, rows = 0;
  /// lines per rank
  int64_t held_out = 0;

  enum Field { present, id, timestep, captioned, probed, flagged, weight, score, threshold, nonfinite, first_channel };
  static constexpr int64_t kHeader = 4, kMessage = 240;

  int64_t width() const { return first_channel + 2 * channels; }
  int64_t training_lines() const { return micro_batches * rows; }
  int64_t length() const { return kHeader + kMessage + (training_lines() + held_out) * width(); }
};

/// One rank's record under construction, on the device.
class RecordBuilder {
 public:
  RecordBuilder(const RecordShape& shape, at::Device device);
  void clear();
  /// Lines [n, width] of micro-batch `micro`.
  void put_training(int64_t micro, const at::Tensor& lines);
  void put_held_out(int64_t from, const at::Tensor& lines);
  /// Marks micro-batch `micro`'s rows as non-finite where `bad` [n].
  void mark_nonfinite(int64_t micro, const at::Tensor& bad);
  /// Keeps the first error of the step.
  void fail(const std::string& message);
  const at::Tensor& flat() const { return flat_; }

 private:
  RecordShape shape_;
  /// the last two are views of flat_
  at::Tensor blank_, flat_, training_, held_out_;
  bool failed_ = false;
};

/// All ranks' records, split up and put into the global order: micro-batch, rank, row.
struct Gathered {
  /// [ranks] float64: 1 = that rank carries an error
  at::Tensor failed;
  /// [micro * ranks * rows, width]
  at::Tensor training;
  /// [ranks * held_out, width]
  at::Tensor held_out;
};
Gathered split(const at::Tensor& all, const RecordShape& shape);

/// The message of the first failed rank, "" if none. `all` [ranks, length] on the CPU.
std::string first_error(const at::Tensor& all);

}  // namespace memsieve
