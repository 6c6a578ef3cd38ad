#pragma once
// The fixed-size record that each rank contributes to a step's only collective. Private to the library.
//
// One flat float64 tensor (float64 holds ids up to 2^53 exactly): a header, room for an error message, then one line
// for each training row, each held-out row and each look that the configuration allows, used or not.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <memsieve/batch.h>

#include <string>

#include "signals/raw_scores.h"

namespace memsieve {

struct RecordShape {
  int64_t channels = 0;
  /// per rank: `rows` lines for each micro-batch
  int64_t micro_batches = 1, rows = 0;
  /// lines per rank
  int64_t held_out = 0, looks = 0;
  /// features of a row that is compared with others; 0 = none
  int64_t likeness = 0;

  enum Field {
    present,
    id,
    timestep,
    captioned,
    probed,
    flagged,
    weight,
    score,
    threshold,
    nonfinite,
    counted,
    stratum,
    alike,
    together,
    first_channel
  };
  /// The header's places: 1 = this rank carries an error; bytes of its message; a number of the caller's (`end_step`:
  /// 1 = a gradient is not finite; `finish_reference`: lines); the step; the drift in force.
  enum Header { failed, message_bytes, extra, step, drift };
  static constexpr int64_t kHeader = 5, kMessage = 240;

  int64_t width() const { return first_channel + 2 * channels + likeness; }
  int64_t training_lines() const { return micro_batches * rows; }
  int64_t length() const { return kHeader + kMessage + (training_lines() + held_out + looks) * width(); }
};

/// What was decided about B rows. All on the device.
struct Verdicts {
  /// [B] float32
  at::Tensor weight;
  /// [B] bool
  at::Tensor flagged;
  /// [B] float32: the evidence, NaN = none
  at::Tensor score;
  /// [B] float32: the drop level in force
  at::Tensor level;
  /// [B, C] float32: standardised, less what the starting model explains
  at::Tensor z;
  /// [B] float32 in [0, 1]: how many of the last rows of other samples are alike; 0 where it was not looked at
  at::Tensor alike;
  /// [B] bool: judged together with samples that are alike
  at::Tensor together;
};

/// [B, shape.width()] float64
at::Tensor record_lines(const at::Tensor& ids, const RawScores& scores, const Verdicts& verdicts,
                        const RecordShape& shape);

/// Reads lines [R, width] by column; each call copies or compares one, [R] unless it says otherwise.
class LineView {
 public:
  LineView(const at::Tensor& lines, const RecordShape& shape) : lines_(lines), shape_(shape) {}
  const at::Tensor& lines() const { return lines_; }
  at::Tensor id() const { return lines_.select(1, RecordShape::id).to(at::kLong); }
  at::Tensor timestep() const { return lines_.select(1, RecordShape::timestep).to(at::kFloat); }
  at::Tensor stratum() const { return lines_.select(1, RecordShape::stratum).to(at::kLong); }
  at::Tensor score() const { return lines_.select(1, RecordShape::score).to(at::kFloat); }
  at::Tensor alike() const { return lines_.select(1, RecordShape::alike).to(at::kFloat); }
  at::Tensor flagged() const { return is_set(RecordShape::flagged); }
  at::Tensor probed() const { return is_set(RecordShape::probed); }
  /// a row that statistics may know of: there, and not exempt
  at::Tensor counted() const { return is_set(RecordShape::counted); }
  /// and whose values are finite
  at::Tensor sound() const { return counted() & is_set(RecordShape::nonfinite).logical_not(); }
  /// [R, C]
  at::Tensor raw() const { return channels(0); }
  at::Tensor z() const { return channels(1); }
  /// [R, RecordShape::likeness]
  at::Tensor likeness() const { return lines_.slice(1, shape_.width() - shape_.likeness).to(at::kFloat); }

 private:
  at::Tensor is_set(int64_t field) const { return lines_.select(1, field) > 0; }
  at::Tensor channels(int64_t which) const {
    const int64_t from = RecordShape::first_channel + which * shape_.channels;
    return lines_.slice(1, from, from + shape_.channels).to(at::kFloat);
  }
  at::Tensor lines_;
  const RecordShape& shape_;
};

/// One rank's record under construction, on the device.
class RecordBuilder {
 public:
  RecordBuilder(const RecordShape& shape, at::Device device);
  void clear();
  /// Lines [n, width] of micro-batch `micro`.
  void put_training(int64_t micro, const at::Tensor& lines);
  void put_held_out(int64_t from, const at::Tensor& lines);
  /// Where `counted` [n] is 0, no line is left.
  void put_looks(const at::Tensor& lines, const at::Tensor& counted);
  /// Marks micro-batch `micro`'s rows as non-finite where `bad` [n].
  void mark_nonfinite(int64_t micro, const at::Tensor& bad);
  /// Notes whether a gradient is not finite: `bad` bool [].
  void mark_gradient(const at::Tensor& bad);
  void set_step(int64_t step);
  /// 0-dim, on the device.
  void set_drift(const at::Tensor& drift);
  /// Keeps the first error of the step: as much of its UTF-8 message as kMessage bytes hold in whole characters.
  void fail(const std::string& message);
  const at::Tensor& flat() const { return flat_; }

 private:
  RecordShape shape_;
  /// the last three are views of flat_
  at::Tensor blank_, flat_, training_, held_out_, looks_;
  bool failed_ = false;
};

/// All ranks' records, split up and put into the global order: micro-batch, rank, row.
struct Gathered {
  /// [ranks] float64: 1 = that rank carries an error; 1 = its gradient is not finite; the step that it is at
  at::Tensor failed, bad_gradient, step;
  /// [ranks] float64, the same on all
  at::Tensor drift;
  /// [micro * ranks * rows, width]
  at::Tensor training;
  /// [ranks * held_out, width]
  at::Tensor held_out;
  /// [ranks * looks, width]
  at::Tensor looks;
  RecordShape shape;
};
Gathered split(const at::Tensor& all, const RecordShape& shape);

/// The message of the first failed rank, "" if none. `all` [ranks, length] on the CPU.
std::string first_error(const at::Tensor& all);

}  // namespace memsieve
