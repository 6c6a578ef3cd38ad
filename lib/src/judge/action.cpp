#include "judge/action.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "config/read.h"
#include "judge/row_blocks.h"

namespace memsieve {

namespace {
const Names kActionKinds{"drop", "downweight"};
}

Schema ActionOptions::schema() {
  const ActionOptions d;
  Schema s;
  s.choice("kind", name_of(kActionKinds, d.kind), kActionKinds,
           "`drop`: weight 0; `downweight`: max(floor, min(1, (level/score)^power))")
      .real("power", d.power, 0, 100, "exponent of `downweight`")
      .real("floor", d.floor, 0, 1, "smallest weight of `downweight`")
      .integer("warmup_steps", d.warmup_steps, 0, INT64_MAX / 2,
               "steps in which everything is measured and judged, and nothing dropped")
      .real("max_fraction", d.max_fraction, 0, 1,
            "at most this fraction of each block of rows is dropped, highest scores first")
      .boolean("pass_over", false,
               "the loop fills the places of samples that are judged memorised with others (Sieve::flagged), which "
               "costs no step's time; see `revisit`");
  return s;
}

ActionOptions ActionOptions::read(const Settings& sieve) {
  ActionOptions o;
  o.kind = read_choice<Kind>(sieve, "action.kind", kActionKinds);
  o.power = sieve.real("action.power");
  o.floor = sieve.real("action.floor");
  o.warmup_steps = sieve.integer("action.warmup_steps");
  o.max_fraction = sieve.real("action.max_fraction");
  o.pass_over = sieve.boolean("action.pass_over");
  return o;
}

void ActionOptions::check(const Settings& sieve, const EvidenceOptions& evidence, int64_t block) const {
  if (pass_over && !evidence.remembers())
    refuse(sieve, "action.pass_over",
           "needs `evidence.kind: ledger` or `discounted`; a single visit says nothing of the next");
  if (pass_over && kind != Kind::drop)
    refuse(sieve, "action.pass_over", "needs `action.kind: drop`; a sample that is passed over has no weight at all");
  if (pass_over && max_fraction < 1)
    refuse(sieve, "action.pass_over", "leaves no row to spare; set action.max_fraction to 1");
  if (max_fraction * static_cast<double>(block) >= 1) return;
  refuse(sieve, "action.max_fraction",
         "lets no row of a block of " + std::to_string(block) + " rows be dropped; raise it to at least 1/" +
             std::to_string(block) + " or enlarge the block (block_rows, or the micro-batch)");
}

at::Tensor weigh(const at::Tensor& score, const at::Tensor& flagged, const Levels& levels, const ActionOptions& options,
                 int64_t block) {
  auto weight = at::ones_like(score);
  auto reduced = flagged;
  if (options.max_fraction < 1) {
    const auto most = static_cast<int64_t>(std::floor(options.max_fraction * static_cast<double>(block)));
    const auto unflagged = at::full_like(score, -std::numeric_limits<double>::infinity());
    const auto ranked = in_blocks(at::where(flagged, at::nan_to_num(score, 0.0), unflagged), block);
    const auto order = at::argsort(ranked, /*stable=*/true, /*dim=*/1, /*descending=*/true);
    const auto place = at::empty_like(order).scatter_(1, order, at::arange(block, order.options()).expand_as(order));
    reduced = reduced & (place < most).reshape({-1}).slice(0, 0, score.size(0));
  }
  at::Tensor lowered;
  if (options.kind == ActionOptions::Kind::drop) {
    lowered = at::zeros_like(score);
  } else {
    const auto ratio = (levels.drop / score).nan_to_num(0.0).clamp(0, 1);
    // Evidence at or below zero under a level below zero: the quotient says nothing, so the floor applies.
    lowered = at::where(score > 0, ratio.pow(options.power), at::zeros_like(score)).clamp_min(options.floor);
  }
  return at::where(reduced, lowered, weight);
}

}  // namespace memsieve
