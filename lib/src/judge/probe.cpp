#include "judge/probe.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "config/read.h"
#include "judge/row_blocks.h"

namespace memsieve {

namespace {
const Names kKinds{"every", "budget"};
}

Schema ProbeOptions::schema() {
  const ProbeOptions d;
  Schema s;
  s.choice("kind", name_of(kKinds, d.kind), kKinds,
           "rows whose magnitude is measured: all (as published), or a fixed number, spent on rows with a "
           "suspicious loss or past and on rows not probed for long")
      .real("fraction", d.fraction, 0, 1, "share of each block that `budget` probes, rounded up");
  return s;
}

ProbeOptions ProbeOptions::read(const Settings& sieve) {
  return {read_choice<Kind>(sieve, "probe.kind", kKinds), sieve.real("probe.fraction")};
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
  const auto priority = at::nan_to_num(score, 0.0) + age + eligible.to(at::kFloat) * 1e4;
  const auto per_block = static_cast<int64_t>(std::ceil(options_.fraction * static_cast<double>(block)));
  return choose_rows(priority, block, std::clamp<int64_t>(per_block, 1, block));
}

void Probe::fold(const at::Tensor& slot, const at::Tensor& counted, const at::Tensor& probed) {
  const auto nowhere = at::full_like(slot, slots_);
  unprobed_.index_add_(0, at::where(counted, slot, nowhere), at::ones_like(slot, at::kFloat));
  unprobed_.index_fill_(0, at::where(counted & probed, slot, nowhere), 0);
}

}  // namespace memsieve
