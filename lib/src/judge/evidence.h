#pragma once
// Evidence: what the last visits of a sample have shown, as one number. Private to the library.

#include <memsieve/schema.h>
#include <memsieve/sieve.h>

#include "judge/discounted.h"
#include "judge/likeness.h"
#include "judge/state.h"
#include "judge/window.h"

namespace memsieve {

struct EvidenceOptions {
  enum class Kind { visit, ledger, discounted };
  enum class Pool { sample, group };
  Kind kind = Kind::ledger;
  /// both 1 with `visit`; `visits` only with `ledger`
  int64_t visits = 8, min_visits = 2;
  /// not with `visit`
  Pool pool = Pool::sample;
  /// with `discounted`
  DiscountedSums::Options sums = {};
  /// cosine from which samples are alike, with `discounted`
  double alike = 0.85;

  static Schema schema();
  static EvidenceOptions read(const Settings& sieve);
  void check(const Settings& sieve, const Setup& setup) const;
  /// A verdict rests on earlier visits too.
  bool remembers() const { return kind != Kind::visit; }
  bool discounts() const { return kind == Kind::discounted; }
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

/// [C]: how far the middle of all samples' mean z-scores lies above 0, from means [W, C] of recent visits to those that
/// were not judged memorised (NaN = none). It goes by their 30% quantile q: q + 0.69 (q - q10), which is the middle of
/// a normal population, but at most 2 q, and 0 where q is below 0. Up to half of all samples may be repeated: the
/// others, and with them this, rise only if the set as a whole is memorised. `flagged` []: the share of all samples
/// that were judged memorised.
at::Tensor bulk_drift(const at::Tensor& means, const at::Tensor& flagged);

/// Past windows [B, V, C] of rows whose rings hold `counts` [B] items, with this visit's scores `current` [B, C] in the
/// place of the oldest, where `measured` [B].
at::Tensor with_current(const at::Tensor& past, const at::Tensor& counts, const at::Tensor& current,
                        const at::Tensor& measured);

/// Holds what each slot (judge/slots.h) has shown: its last visits, or sums over them.
class Evidence {
 public:
  /// `weights`: of each channel.
  Evidence(const EvidenceOptions& options, int64_t slots, const std::vector<float>& weights, at::Device device);

  /// What slots [B] have shown so far.
  struct Past {
    /// [B, V, C] and [B]
    at::Tensor windows, counts;
    DiscountedSums::Past sums;
  };
  Past recall(const at::Tensor& slot) const;
  /// The sum over visits, this one's scores z [B, C] included where `measured` [B]. With `discounted`: its own, or that
  /// over all samples that are alike, where these are enough and it says more.
  EvidenceSum with_visit(const Past& past, const at::Tensor& z, const at::Tensor& measured,
                         const Neighbours& neighbours = {}) const;
  /// [slots - from] float32: what the slots from `from` on have shown; NaN below min_visits.
  at::Tensor of_slots_from(int64_t from) const;
  /// Visits z [R, C] of slots [R], where valid [R].
  void fold(const at::Tensor& slot, const at::Tensor& z, const at::Tensor& valid);
  /// With `discounted`, after a step's `fold`: visits [R] to training slots that count and were neither judged
  /// memorised nor probed for their copies show where the bulk of the training rows lies; `flagged` 0-dim is the
  /// share of all samples that are.
  void fold_bulk(const at::Tensor& slot, const at::Tensor& unflagged, const at::Tensor& flagged);
  /// With `discounted`, once pseudo-rows, from slot `from` on, were observed: how wide the channels' evidence is.
  void refresh_precision(int64_t from, int64_t min_count);
  /// [C]: how far the bulk of the training rows lies above rows that are never trained on, in z-scores of a visit.
  const at::Tensor& drift() const { return drift_; }
  State state();

 private:
  EvidenceSum sum_of(const DiscountedSums::Past& sums, const at::Tensor& drift, double spread) const;

  EvidenceOptions options_;
  /// [C]
  at::Tensor weights_;
  /// [slots, visits, C]
  Rings windows_;
  DiscountedSums sums_;
  /// [1, W, C]: means of recent unflagged visits
  Rings bulk_;
  /// [C], [C] and []
  at::Tensor drift_, precision_, width_;
};

}  // namespace memsieve
