#include "judge/reference.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "config/read.h"
#include "full_precision.h"

namespace memsieve {

namespace {
constexpr int64_t kRemembered = 2048;  // a few hundred pictures' visits: enough for C + 1 coefficients
constexpr int64_t kEnough = 64;        // rows below which nothing is subtracted
const Names kReferenceKinds{"none", "start_model"};

at::Tensor design(const at::Tensor& easiness) {
  return at::cat({at::ones({easiness.size(0), 1}, easiness.options()), easiness}, 1);
}
}  // namespace

Schema ReferenceOptions::schema() {
  const ReferenceOptions d;
  Schema s;
  s.choice("kind", name_of(kReferenceKinds, d.kind), kReferenceKinds,
           "`start_model`: subtract what the model at the start of fine-tuning already found easy about a sample")
      .integer("draws", d.draws, 1, 1000,
               "noise draws of each picture under the starting model, spread evenly over the timesteps");
  return s;
}

ReferenceOptions ReferenceOptions::read(const Settings& sieve) {
  ReferenceOptions o;
  o.kind = read_choice<Kind>(sieve, "reference.kind", kReferenceKinds);
  o.draws = o.is_on() ? sieve.integer("reference.draws") : 0;
  return o;
}

void ReferenceOptions::check(const Settings& sieve, const StandardiseOptions& standardise,
                             const std::vector<Channel>& channels, int64_t num_timesteps) const {
  if (!is_on()) return;
  if (!standardise.by_timestep())
    refuse(sieve, "reference.kind", "start_model corrects z-scores; set standardise.by: timestep");
  if (std::all_of(channels.begin(), channels.end(), [](const Channel& channel) { return channel.reads_start; }))
    refuse(sieve, "reference.kind",
           "start_model has nothing to add to filters that compare with the starting model already; set "
           "reference.kind: none");
  // A filter that no draw reaches would find every picture of average easiness.
  const auto timesteps = static_cast<double>(num_timesteps);
  const double highest = (static_cast<double>(draws) - 0.5) / static_cast<double>(draws) * timesteps;
  for (const auto& channel : channels) {
    const double low = channel.needs.timestep_min;
    if (highest >= low || low >= timesteps) continue;
    std::ostringstream line;
    line << draws << " draws reach timestep " << highest << " at most, but filters." << channel.name
         << " scores none below timestep_min: " << low << "; set draws to at least "
         << static_cast<int64_t>(std::ceil(0.5 / (1 - low / timesteps))) << ", or lower timestep_min";
    refuse(sieve, "reference.draws", line.str());
  }
}

Reference::Reference(const ReferenceOptions& options, int64_t pictures, int64_t channels, at::Device device)
    : options_(options),
      easiness_(at::zeros({options.is_on() ? pictures : 1, channels}, at::device(device).dtype(at::kFloat))),
      coefficients_(at::zeros({channels, channels + 1}, at::device(device).dtype(at::kFloat))),
      recent_(1, kRemembered, 2 * channels, device) {}

void Reference::set(const at::Tensor& picture, const at::Tensor& cell, const at::Tensor& raw,
                    const at::Tensor& from_population, int64_t cells, double clip) {
  at::Tensor z = at::full_like(raw, std::numeric_limits<float>::quiet_NaN());
  for (int64_t k = 0; k < cells; ++k) {
    const auto here = at::nonzero(cell == k).squeeze(1);
    const auto base = at::nonzero((cell == k) & from_population).squeeze(1);
    if (here.size(0) == 0 || base.size(0) == 0) continue;
    for (int64_t c = 0; c < raw.size(1); ++c) {
      const auto stats = robust(raw.index_select(0, base).select(1, c).reshape({1, -1, 1}));
      const auto values = raw.index_select(0, here).select(1, c);
      z.select(1, c).index_copy_(0, here, ((values - stats.median) / stats.scale.clamp_min(1e-12)).clamp(-clip, clip));
    }
  }
  const auto known = at::isnan(z).logical_not().to(at::kFloat);
  // Draw by draw: a GPU adds several values to one place in any order, and ranks would differ in the last bit.
  const auto sum = at::zeros_like(easiness_);
  const auto draw = rank_within_key(picture).rank;
  for (int64_t d = 0; d < draw.max().item<int64_t>() + 1; ++d) {
    const auto here = at::nonzero(draw == d).squeeze(1);
    sum.index_add_(0, picture.index_select(0, here), at::nan_to_num(z.index_select(0, here), 0.0));
  }
  const auto count = at::zeros_like(easiness_).index_add_(0, picture, known);
  easiness_.copy_(sum / count.clamp_min(1));
}

at::Tensor Reference::apply(const at::Tensor& z, const at::Tensor& picture) const {
  return is_on() ? z - explained(picture) : z;
}

void Reference::fold(const at::Tensor& picture, const at::Tensor& adjusted, const at::Tensor& valid) {
  if (!is_on()) return;
  const auto z = adjusted + explained(picture);
  const auto b = easiness_.index_select(0, picture);
  recent_.fold(at::zeros_like(picture), at::cat({z, b}, 1), valid & at::isnan(z).logical_not().any(-1));
  fit();
}

void Reference::fit() {
  const FullPrecision full_precision;
  const int64_t channels = coefficients_.size(0);
  const auto rows = recent_.values().select(0, 0);
  const auto x = design(at::nan_to_num(rows.slice(1, channels), 0.0));
  for (int64_t c = 0; c < channels; ++c) {
    const auto y = rows.select(1, c);
    const auto known = at::isnan(y).logical_not().to(at::kFloat).unsqueeze(1);
    const auto xk = x * known;
    // A small ridge keeps the system regular while few rows are known.
    const auto normal = at::mm(xk.t(), x) + 0.1 * at::eye(channels + 1, x.options());
    const auto right = at::mm(xk.t(), at::nan_to_num(y, 0.0).unsqueeze(1));
    const auto solved = std::get<0>(at::linalg_solve_ex(normal, right)).squeeze(1);
    coefficients_.select(0, c).copy_(at::where(known.sum() >= kEnough, solved, at::zeros_like(solved)));
  }
}

at::Tensor Reference::explained(const at::Tensor& picture) const {
  const FullPrecision full_precision;
  return at::mm(design(easiness_.index_select(0, picture)), coefficients_.t());
}

State Reference::state() {
  return {{"easiness", &easiness_},
          {"coefficients", &coefficients_},
          {"recent", &recent_.buffer},
          {"recent_count", &recent_.count}};
}

}  // namespace memsieve
