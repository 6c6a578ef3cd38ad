#pragma once
// Threshold: when the evidence is too much. Private to the library.

#include <memsieve/schema.h>

#include "judge/evidence.h"
#include "judge/state.h"
#include "judge/window.h"

namespace memsieve {

struct ThresholdOptions {
  enum class Kind { fixed, quantile, robust_z, held_out, rate };
  enum class Tail { normal, conformal };
  Kind kind = Kind::held_out;
  /// `release` is `drop` where verdicts have no past
  double drop = 0.01, release = 0.2;
  /// with `rate`
  double false_drop_rate = 0.01;
  int64_t window = 1000;
  Tail tail = Tail::normal;

  static Schema schema();
  static ThresholdOptions read(const Settings& sieve, const EvidenceOptions& evidence);
  void check(const Settings& sieve, const EvidenceOptions& evidence, int64_t min_count) const;
  bool from_held_out() const { return kind == Kind::held_out; }
  /// Whether the levels rest on the evidence of training rows.
  bool from_training() const { return kind == Kind::quantile || kind == Kind::robust_z; }
};

/// Levels of evidence in force, 0-dim float32 on the device; +inf = nobody is dropped.
struct Levels {
  at::Tensor drop, release;
};

/// [K] float32: the levels that held-out evidence [P] (NaN = none yet) stays below with the probabilities `below`
/// [K] float64.
at::Tensor held_out_levels(const at::Tensor& scores, const at::Tensor& below, bool conformal, int64_t min_count);
/// [K] float32: the levels from the evidence of recent training visits [W] (NaN = none yet), for `quantile` and
/// `robust_z`; `levels` [K] float32 in that kind's unit.
at::Tensor training_levels(const at::Tensor& scores, ThresholdOptions::Kind kind, const at::Tensor& levels,
                           int64_t min_count);

/// The level that a standard normal score stays below with probability 1 - rate where its scale was estimated from
/// `pictures` of them (0 = known exactly): Student's quantile for `pictures` - 1 degrees of freedom, widened by
/// sqrt(1 + 1 / pictures) for the mean's own error. Abramowitz and Stegun, 26.7.5.
double rate_level(double rate, int64_t pictures);

/// [B] bool: beyond the drop level, or judged before and not yet below the release level. Rows without evidence keep
/// what they had.
at::Tensor verdict(const at::Tensor& score, const at::Tensor& enough_visits, const at::Tensor& flagged_before,
                   const Levels& levels);

/// Holds the levels in force and each training slot's last verdict.
class Threshold {
 public:
  /// `slots`: of training rows; `min_count`: evidence that a level needs; `pictures`: held-out ones.
  Threshold(const ThresholdOptions& options, int64_t slots, int64_t min_count, int64_t pictures, at::Device device);

  const Levels& levels() const { return levels_; }
  /// [B] bool: the last verdicts on slots [B].
  at::Tensor flagged(const at::Tensor& slot) const { return flagged_.index_select(0, slot); }
  /// 0-dim float32: how many training slots are judged memorised, as a share of `used` ones.
  at::Tensor flagged_share(int64_t used) const;
  /// Verdicts [R] on slots [R], where counted [R]; of several on one slot the last counts.
  void fold_verdicts(const at::Tensor& slot, const at::Tensor& flagged, const at::Tensor& counted);
  /// Evidence [R] of training visits, where valid [R].
  void fold_training(const at::Tensor& score, const at::Tensor& valid);
  /// After `fold_training`, after new held-out evidence [P] (NaN = none yet), or once the state was overwritten.
  void refresh(const at::Tensor& held_out);
  State state();

 private:
  ThresholdOptions options_;
  int64_t slots_, min_count_;
  /// [slots + 1] bool; the last takes what must not be kept
  at::Tensor flagged_;
  /// [1, window, 1]: evidence of recent training visits
  Rings training_;
  /// [2] drop and release, as held_out_levels or training_levels want them
  at::Tensor wanted_;
  Levels levels_;
};

}  // namespace memsieve
