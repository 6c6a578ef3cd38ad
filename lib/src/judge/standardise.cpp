#include "judge/standardise.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "config/read.h"

namespace memsieve {

namespace {
const Names kBy{"none", "rms", "timestep"};
const Names kPopulations{"training", "held_out"};
}  // namespace

Schema StandardiseOptions::schema() {
  const StandardiseOptions d;
  Schema s;
  s.choice("by", name_of(kBy, d.by), kBy,
           "`none`: the filter's score as it is (the published raw L2); `rms`: divided by sqrt(C·H·W); `timestep`: "
           "robust z-score, (x − median) / (1.4826 · MAD), within the score's timestep bin")
      .choice("population", name_of(kPopulations, d.population), kPopulations,
              "whose recent scores the z-scores are taken against: training rows that were not judged memorised, or "
              "rows that are never trained on")
      .integer("bins", d.bins, 1, 1000, "timestep bins of equal width")
      .integer("window", d.window, 4, 1000000, "scores remembered in each bin")
      .integer("min_count", d.min_count, 2, 1000000,
               "a bin with fewer scores gives no z-score yet; nor is there a threshold from fewer (`quantile`, "
               "`robust_z`: recent scores; `held_out`: held-out rows with evidence)")
      .real("clip", d.clip, 0.1, 1e300, "z-scores are clipped to ± this");
  return s;
}

StandardiseOptions StandardiseOptions::read(const Settings& sieve) {
  StandardiseOptions o;
  o.by = read_choice<By>(sieve, "standardise.by", kBy);
  o.population = read_choice<Population>(sieve, "standardise.population", kPopulations);
  o.bins = sieve.integer("standardise.bins");
  o.window = sieve.integer("standardise.window");
  o.min_count = sieve.integer("standardise.min_count");
  o.clip = sieve.real("standardise.clip");
  return o;
}

void StandardiseOptions::check(const Settings& sieve, const std::vector<Channel>& channels) const {
  if (by_timestep()) check_at_most(sieve, "standardise.min_count", min_count, "standardise.window", window);
  if (by != By::rms) return;
  for (const auto& channel : channels) {
    if (!channel.reads_norm)
      refuse(sieve, "standardise.by",
             "rms is for the magnitude alone; " + channel.name + " is no norm over C,H,W. Use `timestep` or `none`");
    // Only what `magnitude` itself declares: another filter's options may mean anything.
    if (channel.name != "magnitude") continue;
    const Settings own = sieve.section("filters.magnitude");
    if (own.text("scale") == "log" || own.text("norm") == "rms")
      refuse(sieve, "standardise.by", "rms divides by sqrt(C*H*W) itself; use it with `scale: linear, norm: l2`");
  }
}

Standardise::Standardise(const StandardiseOptions& options, int64_t channels, int64_t num_timesteps, int64_t strata,
                         at::Device device)
    : options_(options),
      num_timesteps_(num_timesteps),
      strata_(strata),
      scores_(channels * strata * options.bins, options.window, 1, device) {
  refresh();
}

at::Tensor Standardise::cell_of(const at::Tensor& timestep, const at::Tensor& stratum) const {
  const auto scaled = timestep * (static_cast<double>(options_.bins) / static_cast<double>(num_timesteps_));
  const auto bin = scaled.floor().to(at::kLong).clamp(0, options_.bins - 1);
  if (strata_ == 1 || !stratum.defined()) return bin;
  return bin + stratum.clamp(0, strata_ - 1) * options_.bins;
}

at::Tensor Standardise::apply(const RawScores& scores) const {
  if (options_.by == StandardiseOptions::By::none) return scores.raw;
  if (options_.by == StandardiseOptions::By::rms) return scores.raw / std::sqrt(static_cast<double>(scores.elements));
  const auto here = location_and_scale_.index_select(2, cell_of(scores.timestep, scores.stratum));
  const auto z = (scores.raw - here[0].t()) / here[1].t();
  return z.clamp(-options_.clip, options_.clip);
}

void Standardise::fold(const at::Tensor& cell, const at::Tensor& raw, const at::Tensor& valid) {
  // Every channel has rings of its own, so all are folded at once.
  const auto values = raw.t();
  const auto first = at::arange(raw.size(1), cell.options()).unsqueeze(1) * cells();
  scores_.fold((cell + first).reshape({-1}), values.reshape({-1, 1}),
               (valid & at::isnan(values).logical_not()).reshape({-1}));
}

void Standardise::refresh() {
  if (!options_.by_timestep()) return;
  const auto stats = robust(scores_.values());
  const auto location =
      stats.median.masked_fill(stats.count < options_.min_count, std::numeric_limits<double>::quiet_NaN());
  location_and_scale_ = at::stack({location, stats.scale.clamp_min(1e-12)}).view({2, -1, cells()});
}

}  // namespace memsieve
