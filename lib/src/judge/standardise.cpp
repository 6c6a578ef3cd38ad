#include "judge/standardise.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "config/read.h"
#include "nan.h"

namespace memsieve {

namespace {
constexpr int64_t kPairsAtOnce = 512;  // of a running mean: all pairs of them are compared
const Names kBy{"none", "rms", "timestep", "running_mean"};
const Names kPopulations{"training", "held_out"};
}  // namespace

Schema StandardiseOptions::schema() {
  const StandardiseOptions d;
  Schema s;
  s.choice(
       "by", name_of(kBy, d.by), kBy,
       "`none`: the filter's score as it is (the published raw L2); `rms`: divided by sqrt(C·H·W); `timestep`: "
       "robust z-score, (x − median) / (1.4826 · MAD), within the score's timestep bin; `running_mean`: the running "
       "mean of the error at exactly this timestep over the row's own error (IET-AGC)")
      .choice("population", name_of(kPopulations, d.population), kPopulations,
              "whose recent scores the z-scores are taken against: training rows that were not judged memorised (with "
              "`evidence.kind: discounted` those without copies), or rows that are never trained on")
      .integer("bins", d.bins, 1, 1000, "timestep bins of equal width")
      .integer("window", d.window, 4, 1000000, "scores remembered in each bin")
      .integer("min_count", d.min_count, 2, 1000000,
               "a bin with fewer scores gives no z-score yet; nor is there a threshold from fewer (`quantile`, "
               "`robust_z`: recent scores; `held_out`: held-out rows with evidence)")
      .real("clip", d.clip, 0.1, 1e38, "z-scores are clipped to ± this")
      .real("decay", d.decay, 0, 0.999999,
            "what `running_mean` keeps of the mean at each new error; it starts at 0 and knows every training row, "
            "dropped ones too");
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
  o.decay = sieve.real("standardise.decay");
  return o;
}

void StandardiseOptions::check(const Settings& sieve, const std::vector<Channel>& channels) const {
  if (by_timestep()) check_at_most(sieve, "standardise.min_count", min_count, "standardise.window", window);
  if (by_running_mean() && (channels.size() != 1 || channels[0].name != "prediction_error" ||
                            sieve.section("filters.prediction_error").text("scale") != "linear"))
    refuse(sieve, "standardise.by",
           "running_mean compares a row's own error with the mean error; use it with `filters: {prediction_error: "
           "{scale: linear}}` and no other");
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
      bins_(options.by_running_mean() ? num_timesteps : options.bins),
      scores_(options.by_running_mean() ? 1 : channels * strata * options.bins,
              options.by_running_mean() ? 1 : options.window, 1, device),
      mean_(at::zeros({options.by_running_mean() ? cells() + 1 : 1}, at::device(device).dtype(at::kFloat))) {
  refresh();
}

at::Tensor Standardise::cell_of(const at::Tensor& timestep, const at::Tensor& stratum) const {
  const auto scaled = timestep * (static_cast<double>(bins_) / static_cast<double>(num_timesteps_));
  auto bin = scaled.floor().to(at::kLong).clamp(0, bins_ - 1);
  if (strata_ == 1 || !stratum.defined()) return bin;
  return bin + stratum.clamp(0, strata_ - 1) * bins_;
}

at::Tensor Standardise::apply(const RawScores& scores) const {
  if (options_.by == StandardiseOptions::By::none) return scores.raw;
  if (options_.by == StandardiseOptions::By::rms) return scores.raw / std::sqrt(static_cast<double>(scores.elements));
  const auto cell = cell_of(scores.timestep, scores.stratum);
  // Both are errors with the sign turned; an error of 0 is as good as can be.
  if (options_.by_running_mean()) return mean_.index_select(0, cell).unsqueeze(1) / scores.raw.clamp_max(-1e-12);
  const auto here = location_and_scale_.index_select(2, cell);
  const auto z = (scores.raw - here[0].t()) / here[1].t();
  return z.clamp(-options_.clip, options_.clip);
}

void Standardise::fold(const at::Tensor& cell, const at::Tensor& raw, const at::Tensor& valid) {
  if (options_.by_running_mean()) return fold_mean(cell, raw, valid);
  // Every channel has rings of its own, so all are folded at once.
  const auto values = raw.t();
  const auto first = at::arange(raw.size(1), cell.options()).unsqueeze(1) * cells();
  scores_.fold((cell + first).reshape({-1}), values.reshape({-1, 1}),
               (valid & at::isnan(values).logical_not()).reshape({-1}));
}

void Standardise::fold_mean(const at::Tensor& cell, const at::Tensor& raw, const at::Tensor& valid) {
  const auto values = raw.select(1, 0);
  const auto nowhere = at::full_like(cell, cells());
  const auto keys = at::where(valid & at::isnan(values).logical_not(), cell, nowhere);
  const auto finite = at::nan_to_num(values, 0.0);
  // As if the rows came one after the other. Several of one timestep are summed in a fixed order, and each place is
  // written once, so that ranks agree in the last bit on GPUs too.
  for (int64_t from = 0; from < keys.size(0); from += kPairsAtOnce) {
    const auto key = keys.slice(0, from, from + kPairsAtOnce), value = finite.slice(0, from, from + kPairsAtOnce);
    const auto [rank, count] = rank_within_key(key);
    const auto kept = at::pow(options_.decay, (count - 1 - rank).to(at::kFloat));
    const auto same = (key.unsqueeze(1) == key.unsqueeze(0)).to(at::kFloat);
    const auto added = (same * ((1 - options_.decay) * kept * value)).sum(1);
    const auto mean = mean_.index_select(0, key) * at::pow(options_.decay, count.to(at::kFloat)) + added;
    mean_.index_put_({at::where(rank == count - 1, key, at::full_like(key, cells()))}, mean);
  }
}

State Standardise::state() {
  State all{{"scores", &scores_.buffer}, {"scores_count", &scores_.count}};
  if (options_.by_running_mean()) all.emplace_back("running_mean", &mean_);
  return all;
}

void Standardise::refresh() {
  if (!options_.by_timestep()) return;
  const auto stats = robust(scores_.values());
  const auto location = stats.median.masked_fill(stats.count < options_.min_count, kNaN);
  location_and_scale_ = at::stack({location, stats.scale.clamp_min(1e-12)}).view({2, -1, cells()});
}

}  // namespace memsieve
