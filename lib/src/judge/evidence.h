#pragma once
// Evidence: what the last visits of a sample have shown, as one number. Private to the library.

#include <memsieve/schema.h>
#include <memsieve/sieve.h>

#include "judge/state.h"
#include "judge/window.h"

namespace memsieve {

struct EvidenceOptions {
  enum class Kind { visit, ledger };
  enum class Pool { sample, group };
  Kind kind = Kind::ledger;
  /// both 1 with `visit`
  int64_t visits = 8, min_visits = 2;
  /// only with `ledger`
  Pool pool = Pool::sample;

  static Schema schema();
  static EvidenceOptions read(const Settings& sieve);
  void check(const Settings& sieve, const Setup& setup) const;
  /// A verdict rests on earlier visits too.
  bool remembers() const { return kind == Kind::ledger; }
  bool pools_groups() const { return pool == Pool::group; }
};

struct EvidenceSum {
  /// [R] float32, NaN where no visit was measured
  at::Tensor score;
  /// [R] int64, visits with at least one measured channel
  at::Tensor visits;
};

/// windows [R, V, C] of standardised scores, NaN = not measured; weights [C]. score = sum over channels of weight *
/// sqrt(n) * mean: under independent standard-normal visits each term has unit variance whatever the number n of visits
/// (Stouffer's method).
EvidenceSum evidence(const at::Tensor& windows, const at::Tensor& weights);

/// Past windows [B, V, C] of rows whose rings hold `counts` [B] items, with this visit's scores `current` [B, C] in the
/// place of the oldest, where `measured` [B].
at::Tensor with_current(const at::Tensor& past, const at::Tensor& counts, const at::Tensor& current,
                        const at::Tensor& measured);

/// Holds the last visits of each slot (judge/slots.h).
class Evidence {
 public:
  /// `weights`: of each channel.
  Evidence(const EvidenceOptions& options, int64_t slots, const std::vector<float>& weights, at::Device device);

  /// What slots [B] have shown so far: [B, V, C] and [B].
  at::Tensor windows(const at::Tensor& slot) const { return windows_.buffer.index_select(0, slot); }
  at::Tensor counts(const at::Tensor& slot) const { return windows_.count.index_select(0, slot); }
  /// The sum over visits, this one's scores z [B, C] included where `measured` [B].
  EvidenceSum with_visit(const at::Tensor& windows, const at::Tensor& counts, const at::Tensor& z,
                         const at::Tensor& measured) const;
  /// [slots - from] float32: what the slots from `from` on have shown; NaN below min_visits.
  at::Tensor of_slots_from(int64_t from) const;
  /// Visits z [R, C] of slots [R], where valid [R].
  void fold(const at::Tensor& slot, const at::Tensor& z, const at::Tensor& valid);
  State state() { return {{"windows", &windows_.buffer}, {"windows_count", &windows_.count}}; }

 private:
  EvidenceOptions options_;
  /// [C]
  at::Tensor weights_;
  /// [slots, visits, C]
  Rings windows_;
};

}  // namespace memsieve
