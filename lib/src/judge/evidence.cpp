#include "judge/evidence.h"

#include <ATen/ATen.h>

#include "config/read.h"
#include "nan.h"

namespace memsieve {

namespace {
const Names kEvidenceKinds{"visit", "ledger", "discounted"};
const Names kPools{"sample", "group"};
// visits by which the bulk of the training rows is known, and the fewest that say anything
constexpr int64_t kBulk = 1000, kBulkLeast = 200;
// low enough that half of all samples may be repeated; of a normal population it lies kToMiddle sd below the middle,
// and kApart sd above the quantile of a third of it
constexpr double kBulkQuantile = 0.3, kToMiddle = 0.5244, kApart = 0.7572;
}  // namespace

Schema EvidenceOptions::schema() {
  const EvidenceOptions d;
  Schema s;
  s.choice("kind", name_of(kEvidenceKinds, d.kind), kEvidenceKinds,
           "`visit`: judge by this visit alone, as published; `ledger`: by what the sample's last visits have shown; "
           "`discounted`: by sums over all of its visits in which later ones count more")
      .integer("visits", d.visits, 1, 1000, "visits remembered for each sample (`ledger`)")
      .integer("min_visits", d.min_visits, 1, 1000,
               "no verdict before this many measured visits (`ledger`, `discounted`)")
      .choice("pool", name_of(kPools, d.pool), kPools,
              "`group`: samples with the same group id share their evidence (`ledger`, `discounted`)")
      .real("discount", d.sums.discount, 0.01, 1,
            "factor by which a visit counts less than the next one (`discounted`)")
      .real("spread", d.sums.spread, 1e-6, 100,
            "variance of ordinary samples' own lasting z-scores, as a multiple of the variance between visits "
            "(`discounted`); larger = fewer ordinary samples are dropped in long runs, and repeated ones later")
      .real("spread_alike", d.sums.spread_alike, 1e-6, 100,
            "the same for several samples that are alike and judged together; counts only with probe.likeness")
      .real(
          "alike", d.alike, 1e-3, 1,
          "cosine between two samples' features (Batch::likeness) from which they are alike; a sample is judged together "
          "with others like it once two of them were measured; counts only with probe.likeness");
  return s;
}

EvidenceOptions EvidenceOptions::read(const Settings& sieve) {
  EvidenceOptions o;
  o.kind = read_choice<Kind>(sieve, "evidence.kind", kEvidenceKinds);
  o.visits = o.kind == Kind::ledger ? sieve.integer("evidence.visits") : 1;
  o.sums = {sieve.real("evidence.discount"), sieve.real("evidence.spread"), sieve.real("evidence.spread_alike")};
  o.alike = sieve.real("evidence.alike");
  o.min_visits = o.remembers() ? sieve.integer("evidence.min_visits") : 1;
  if (o.remembers()) o.pool = read_choice<Pool>(sieve, "evidence.pool", kPools);
  return o;
}

void EvidenceOptions::check(const Settings& sieve, const Setup& setup) const {
  if (pools_groups() && setup.group_id.empty())
    refuse(sieve, "evidence.pool", "group, but the data set has no group ids");
  if (kind == Kind::ledger) check_at_most(sieve, "evidence.min_visits", min_visits, "evidence.visits", visits);
}

EvidenceSum evidence(const at::Tensor& windows, const at::Tensor& weights) {
  const auto measured = at::isnan(windows).logical_not();
  const auto n = measured.sum(1).to(at::kFloat);
  const auto sum = at::nansum(windows, 1);
  // One visit needs no root and no quotient: the raw score must come out bit for bit for the published rule.
  const auto terms = windows.size(1) == 1 ? sum : sum / at::sqrt(n.clamp_min(1));
  const auto visits = measured.any(-1).sum(-1);
  const auto score = (terms * weights).sum(-1);
  return {score.masked_fill(visits == 0, kNaN), visits};
}

at::Tensor bulk_drift(const at::Tensor& means, const at::Tensor& flagged) {
  // Samples that were judged memorised lie above, so all samples' quantile p is the others' quantile p / (1 - flagged).
  const auto wanted = (kBulkQuantile / (1 - flagged.clamp_max(0.5))).to(at::kFloat);
  std::vector<at::Tensor> drift;
  for (int64_t c = 0; c < means.size(1); ++c) {
    const auto mean = means.select(1, c);
    const auto q = at::nanquantile(mean, wanted), low = at::nanquantile(mean, wanted / 3);
    // Where half are repeated it is the middle of the others already: to the middle of all only as far as it has risen.
    drift.push_back(at::minimum(2 * q, q + (q - low) * (kToMiddle / kApart)));
  }
  const auto visits = at::isnan(means).logical_not().sum(0);
  return at::stack(drift).clamp_min(0).nan_to_num(0.0).masked_fill(visits < kBulkLeast, 0);
}

at::Tensor with_current(const at::Tensor& past, const at::Tensor& counts, const at::Tensor& current,
                        const at::Tensor& measured) {
  const int64_t length = past.size(1);
  const auto place = at::arange(length, counts.options()).unsqueeze(0);
  const auto here = (place == at::remainder(counts, length).unsqueeze(1)) & measured.unsqueeze(1);
  return at::where(here.unsqueeze(-1), current.unsqueeze(1), past);
}

Evidence::Evidence(const EvidenceOptions& options, int64_t slots, const std::vector<float>& weights, at::Device device)
    : options_(options),
      weights_(at::tensor(weights, at::kFloat).to(device)),
      windows_(options.discounts() ? 0 : slots, options.visits, static_cast<int64_t>(weights.size()), device),
      sums_(options.sums, options.discounts() ? slots : 0, static_cast<int64_t>(weights.size()), device),
      bulk_(1, options.discounts() ? kBulk : 1, static_cast<int64_t>(weights.size()), device),
      drift_(at::zeros_like(weights_)),
      precision_(at::ones_like(weights_)),
      width_(at::ones({}, weights_.options())) {}

Evidence::Past Evidence::recall(const at::Tensor& slot) const {
  if (options_.discounts()) return {{}, {}, sums_.recall(slot)};
  return {windows_.buffer.index_select(0, slot), windows_.count.index_select(0, slot), {}};
}

EvidenceSum Evidence::sum_of(const DiscountedSums::Past& sums, const at::Tensor& drift, double spread) const {
  const auto t = sums_.standardised(sums, drift, spread);
  const auto known = at::isnan(t).logical_not();
  // Unit variance whichever channels are known.
  const auto weight = weights_ * precision_ * known.to(at::kFloat);
  const auto score = at::nan_to_num(t, 0.0).mul(weight).sum(-1) / weight.square().sum(-1).sqrt().clamp_min(1e-12);
  const auto none = known.any(-1).logical_not();
  return {(score / width_).masked_fill(none, kNaN), std::get<0>(sums.visits.max(-1)).to(at::kLong)};
}

EvidenceSum Evidence::with_visit(const Past& past, const at::Tensor& z, const at::Tensor& measured,
                                 const Neighbours& neighbours) const {
  if (!options_.discounts()) return evidence(with_current(past.windows, past.counts, z, measured), weights_);
  const auto seen = z.masked_fill(measured.logical_not().unsqueeze(1), kNaN);
  auto own = sum_of(sums_.with_visit(past.sums, seen), drift_, options_.sums.spread);
  if (!neighbours.enough.defined()) return own;
  const auto all = sum_of(sums_.with_visit(neighbours.sums, seen), drift_, options_.sums.spread_alike);
  const auto more = neighbours.enough & (at::isnan(own.score) | (all.score > own.score));
  return {at::where(more, all.score, own.score),
          at::where(neighbours.enough, at::maximum(all.visits, own.visits), own.visits)};
}

at::Tensor Evidence::of_slots_from(int64_t from) const {
  const auto e = options_.discounts() ? sum_of(sums_.since(from), at::zeros_like(drift_), options_.sums.spread)
                                      : evidence(windows_.values().slice(0, from), weights_);
  return e.score.masked_fill(e.visits < options_.min_visits, kNaN);
}

void Evidence::fold(const at::Tensor& slot, const at::Tensor& z, const at::Tensor& valid) {
  if (options_.discounts()) return sums_.fold(slot, z, valid);
  windows_.fold(slot, z, valid & at::isnan(z).logical_not().any(-1));
}

void Evidence::fold_bulk(const at::Tensor& slot, const at::Tensor& unflagged, const at::Tensor& flagged) {
  if (!options_.discounts()) return;
  const auto mean = sums_.mean(sums_.recall(slot));
  bulk_.fold(at::zeros_like(slot), mean, unflagged & at::isnan(mean).logical_not().any(-1));
  drift_ = bulk_drift(bulk_.values().select(0, 0), flagged);
}

void Evidence::refresh_precision(int64_t from, int64_t min_count) {
  if (!options_.discounts()) return;
  // Held-out pictures do not drift: their z-scores are taken against their own median.
  const auto none = at::zeros_like(drift_);
  const auto t = sums_.standardised(sums_.since(from), none, options_.sums.spread);
  const auto stats = robust(t.t().unsqueeze(-1));
  const auto enough = stats.count >= min_count;
  precision_ = at::where(enough, 1 / stats.scale.square().clamp_min(0.1), at::ones_like(stats.scale));
  width_ = at::ones_like(width_);
  const auto together = robust(sum_of(sums_.since(from), none, options_.sums.spread).score.reshape({1, -1, 1}));
  width_ = at::where(together.count >= min_count, together.scale.clamp_min(1), at::ones_like(together.scale))[0];
}

State Evidence::state() {
  // Names that older checkpoints hold come first; what a kind does not use takes no room.
  State all{{"windows", &windows_.buffer}, {"windows_count", &windows_.count}};
  if (!options_.discounts()) return all;
  const State sums = sums_.state();
  all.insert(all.end(), sums.begin(), sums.end());
  all.insert(all.end(), {{"bulk", &bulk_.buffer},
                         {"bulk_count", &bulk_.count},
                         {"drift", &drift_},
                         {"precision", &precision_},
                         {"width", &width_}});
  return all;
}

}  // namespace memsieve
