#pragma once
// A toy conditional denoiser with one weight matrix, small enough to reason about, and a loop around the sieve.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <memsieve/memsieve.h>

#include <functional>
#include <string>
#include <vector>

namespace toy {

constexpr int64_t kDim = 6;

/// All rows of one optimiser step over all ranks: [micro][rank][row] flattened.
struct Step {
  at::Tensor ids, t, x, caption, target;
};

inline Step make_step(int64_t rows, int64_t dataset, uint64_t seed, int64_t step) {
  // A generator of its own: ranks that are threads must not share one.
  const at::Generator g = at::detail::createCPUGenerator(seed * 1000003 + step);
  return {at::randint(dataset, {rows}, g, at::kLong), at::randint(1000, {rows}, g, at::kLong),
          at::randn({rows, kDim}, g, at::kDouble),
          at::randn({rows, kDim}, g, at::kDouble) * (at::randint(4, {rows, 1}, g, at::kLong) + 0.1),
          at::randn({rows, kDim}, g, at::kDouble)};
}

/// In float64, so that a row's float32 signals do not depend on the rows beside it.
struct Model {
  at::Tensor weight = (at::eye(kDim, at::kDouble) * 0.5 + 0.1).set_requires_grad(true);
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& caption) const {
    return at::mm(x + 0.5 * caption, weight);
  }
};

inline memsieve::Batch batch_of(const Model& model, const Step& s, int64_t from, int64_t to) {
  const auto x = s.x.slice(0, from, to), caption = s.caption.slice(0, from, to);
  memsieve::Batch batch;
  batch.sample_id = s.ids.slice(0, from, to).contiguous();
  batch.timestep = s.t.slice(0, from, to);
  batch.prediction = model(x, caption);
  batch.target = s.target.slice(0, from, to);
  batch.null_prediction = [x, &model](const at::Tensor& rows) {
    const auto chosen = x.index_select(0, rows);
    return model(chosen, at::zeros_like(chosen));
  };
  return batch;
}

/// A batch whose prediction error is exactly `error` [B] and whose magnitude is exactly `magnitude` [B].
inline memsieve::Batch scripted(const at::Tensor& ids, const at::Tensor& t, const at::Tensor& error,
                                const at::Tensor& magnitude) {
  memsieve::Batch batch;
  const int64_t rows = ids.size(0);
  batch.sample_id = ids;
  batch.timestep = t;
  batch.prediction = at::zeros({rows, 4});
  batch.target = error.sqrt().unsqueeze(1).expand({rows, 4});
  batch.null_prediction = [magnitude](const at::Tensor& chosen) {
    return (magnitude.index_select(0, chosen) / 2).unsqueeze(1).expand({chosen.size(0), 4}).contiguous();
  };
  return batch;
}

inline at::Tensor per_sample_loss(const memsieve::Batch& batch) {
  return (batch.prediction - batch.target).square().mean(1);
}

/// The setup of `ranks` ranks that share `rows` rows in `micro` micro-batches.
inline memsieve::Setup setup(int64_t dataset, int64_t rows, int64_t ranks = 1, int64_t micro = 1) {
  memsieve::Setup s;
  s.filters = memsieve::builtin_filters();
  s.dataset_size = dataset;
  s.rows_per_micro_batch = rows / ranks / micro;
  s.micro_batches = micro;
  return s;
}

/// The published rule, a row kept if its raw L2 magnitude is at most `threshold`.
inline std::string published(double threshold) {
  return "sieve: {filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: "
         "{kind: fixed, drop: " +
         std::to_string(threshold) + "}}";
}

inline const std::string kPublished = R"(
sieve:
  filters: {magnitude: {norm: l2}}
  standardise: {by: none}
  evidence: {kind: visit}
  threshold: {kind: fixed, drop: 2.0}
)";

}  // namespace toy
