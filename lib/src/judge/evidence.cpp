#include "judge/evidence.h"

#include <ATen/ATen.h>

#include <limits>

#include "config/read.h"

namespace memsieve {

namespace {
const Names kKinds{"visit", "ledger"};
const Names kPools{"sample", "group"};
}  // namespace

Schema EvidenceOptions::schema() {
  const EvidenceOptions d;
  Schema s;
  s.choice("kind", name_of(kKinds, d.kind), kKinds,
           "`visit`: judge by this visit alone, as published; `ledger`: by what the sample's last visits have shown")
      .integer("visits", d.visits, 1, 1000, "visits remembered for each sample (`ledger`)")
      .integer("min_visits", d.min_visits, 1, 1000, "no verdict before this many measured visits (`ledger`)")
      .choice("pool", name_of(kPools, d.pool), kPools,
              "`group`: samples with the same group id share their evidence (`ledger`)");
  return s;
}

EvidenceOptions EvidenceOptions::read(const Settings& sieve) {
  EvidenceOptions o;
  o.kind = read_choice<Kind>(sieve, "evidence.kind", kKinds);
  o.visits = o.remembers() ? sieve.integer("evidence.visits") : 1;
  o.min_visits = o.remembers() ? sieve.integer("evidence.min_visits") : 1;
  if (o.remembers()) o.pool = read_choice<Pool>(sieve, "evidence.pool", kPools);
  return o;
}

void EvidenceOptions::check(const Settings& sieve, const Setup& setup) const {
  if (pools_groups() && setup.group_id.empty())
    refuse(sieve, "evidence.pool", "group, but the data set has no group ids");
  if (remembers()) check_at_most(sieve, "evidence.min_visits", min_visits, "evidence.visits", visits);
}

EvidenceSum evidence(const at::Tensor& windows, const at::Tensor& weights) {
  const auto measured = at::isnan(windows).logical_not();
  const auto n = measured.sum(1).to(at::kFloat);
  const auto sum = at::nansum(windows, 1);
  // One visit needs no root and no quotient: the raw score must come out bit for bit for the published rule.
  const auto terms = windows.size(1) == 1 ? sum : sum / at::sqrt(n.clamp_min(1));
  const auto visits = measured.any(-1).sum(-1);
  const auto score = (terms * weights).sum(-1);
  return {score.masked_fill(visits == 0, std::numeric_limits<double>::quiet_NaN()), visits};
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
      windows_(slots, options.visits, static_cast<int64_t>(weights.size()), device) {}

EvidenceSum Evidence::with_visit(const at::Tensor& windows, const at::Tensor& counts, const at::Tensor& z,
                                 const at::Tensor& measured) const {
  return evidence(with_current(windows, counts, z, measured), weights_);
}

at::Tensor Evidence::of_slots_from(int64_t from) const {
  const auto e = evidence(windows_.values().slice(0, from), weights_);
  return e.score.masked_fill(e.visits < options_.min_visits, std::numeric_limits<double>::quiet_NaN());
}

void Evidence::fold(const at::Tensor& slot, const at::Tensor& z, const at::Tensor& valid) {
  windows_.fold(slot, z, valid & at::isnan(z).logical_not().any(-1));
}

}  // namespace memsieve
