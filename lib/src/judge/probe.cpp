#include "judge/probe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "config/read.h"
#include "judge/row_blocks.h"

namespace memsieve {

namespace {
const Names kProbeKinds{"every", "budget"};
// four visits without a probe weigh as much as a unit of evidence
constexpr double kAgeWeight = 0.25, kNotDue = 1e3;
}  // namespace

Schema ProbeOptions::schema() {
  const ProbeOptions d;
  Schema s;
  s.choice("kind", name_of(kProbeKinds, d.kind), kProbeKinds,
           "rows for which counterfactual predictions are made: all (as published), or a fixed number, spent on rows "
           "with a suspicious past (with `evidence.kind: visit` or `ledger`, also by what costs nothing at this visit) "
           "and on rows not probed for long")
      .real("fraction", d.fraction, 0, 1, "share of each block that `budget` probes, rounded up")
      .integer("every", d.steps, 1, 1000000,
               "optimiser steps from one in which `budget` probes to the next: a few larger passes cost less than many "
               "small ones")
      .real(
          "likeness", d.likeness, 0, 1000,
          "how much sooner `budget` probes a row that has copies among the last ones, in units of evidence; more than "
          "0 also has samples that are alike judged together; needs Batch::likeness, or group ids and `evidence.pool: "
          "group`, and `evidence.kind: discounted`; 0 = off");
  return s;
}

ProbeOptions ProbeOptions::read(const Settings& sieve) {
  return {read_choice<Kind>(sieve, "probe.kind", kProbeKinds), sieve.real("probe.fraction"),
          sieve.integer("probe.every"), sieve.real("probe.likeness")};
}

at::Tensor choose_rows(const at::Tensor& priority, int64_t block, int64_t per_block) {
  const auto blocks = in_blocks(priority, block);
  // A stable sort, not topk: among equals the earlier row wins, whatever the number of blocks.
  const auto order = at::argsort(blocks, /*stable=*/true, /*dim=*/1, /*descending=*/true);
  const auto chosen = order.slice(1, 0, per_block);
  const auto first = at::arange(blocks.size(0), chosen.options()).unsqueeze(1) * block;
  return (chosen + first).reshape({-1}).clamp_max(priority.size(0) - 1);
}

Probe::Probe(const ProbeOptions& options, int64_t slots, at::Device device)
    : options_(options), slots_(slots), unprobed_(at::zeros({slots + 1}, at::device(device).dtype(at::kFloat))) {}

at::Tensor Probe::choose(const at::Tensor& slot, const at::Tensor& score, const at::Tensor& eligible,
                         int64_t block) const {
  const auto age = unprobed_.index_select(0, slot);
  return best(at::nan_to_num(score, 0.0) + age, eligible, block);
}

at::Tensor Probe::choose_by_past(const at::Tensor& slot, const at::Tensor& score, const at::Tensor& alike,
                                 const at::Tensor& flagged, const at::Tensor& level, const at::Tensor& eligible,
                                 int64_t block) const {
  const auto age = unprobed_.index_select(0, slot), known = at::nan_to_num(score, 0.0);
  // Among copies evidence has no say: looking at one picture again and again, one would not see the others.
  auto priority = known.clamp_min(0);
  if (alike.defined()) priority = at::where(alike > 0, options_.likeness * alike, priority);
  priority = priority + kAgeWeight * age;
  const auto due = age > 1 + (known - level).clamp_min(0);
  priority = at::where(flagged, at::where(due, kAgeWeight * age, -kNotDue + age), priority);
  return best(priority, eligible, block);
}

int64_t Probe::per_block(int64_t block) const {
  const auto wanted = static_cast<int64_t>(std::ceil(options_.fraction * static_cast<double>(block)));
  return std::clamp<int64_t>(wanted, 1, block);
}

at::Tensor Probe::best(const at::Tensor& priority_of, const at::Tensor& eligible, int64_t block) const {
  const auto priority = priority_of + eligible.to(at::kFloat) * 1e4;
  return choose_rows(priority, block, per_block(block));
}

void Probe::fold(const at::Tensor& slot, const at::Tensor& counted, const at::Tensor& probed) {
  const auto nowhere = at::full_like(slot, slots_);
  unprobed_.index_add_(0, at::where(counted, slot, nowhere), at::ones_like(slot, at::kFloat));
  unprobed_.index_fill_(0, at::where(counted & probed, slot, nowhere), 0);
}

}  // namespace memsieve
