#include "judge/window.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <limits>

namespace memsieve {

namespace {
constexpr int64_t kPairs = 512;  // keys up to which all pairs are compared

/// [..., 1]: the lower median of those along the last dimension that are not NaN; NaN where none is.
at::Tensor lower_median(const at::Tensor& values) {
  // On a GPU nanmedian is refused then, for the indices that it returns as well; sorting takes longer.
  if (!at::globalContext().deterministicAlgorithms()) return std::get<0>(at::nanmedian(values, -1, /*keepdim=*/true));
  const auto sorted = std::get<0>(at::sort(values, -1));  // NaN last
  const auto count = at::isnan(values).logical_not().sum(-1, /*keepdim=*/true);
  return sorted.gather(-1, at::floor_divide(count - 1, 2).clamp_min(0));
}
}  // namespace

Ranks rank_within_key(const at::Tensor& keys) {
  const int64_t n = keys.size(0);
  if (n <= kPairs) {  // on a GPU a few kernels instead of twenty
    const auto same = keys.unsqueeze(1) == keys.unsqueeze(0);
    return {same.tril(-1).sum(1), same.sum(1)};
  }
  const auto index = at::arange(n, keys.options());
  if (n == 0) return {index, index};
  const auto [sorted, order] = at::sort(keys, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  auto starts = at::ones({n}, keys.options().dtype(at::kBool));
  starts.slice(0, 1).copy_(sorted.slice(0, 1) != sorted.slice(0, 0, n - 1));
  const auto segment = starts.to(at::kLong).cumsum(0) - 1;
  const auto first = std::get<0>(at::cummax(at::where(starts, index, at::zeros_like(index)), 0));
  const auto totals = at::zeros({n}, keys.options()).index_add(0, segment, at::ones_like(index));
  const auto unsorted = at::empty_like(index);
  const auto rank = unsorted.scatter(0, order, index - first);
  const auto count = unsorted.scatter(0, order, totals.index_select(0, segment));
  return {rank, count};
}

Rings::Rings(int64_t rows, int64_t length, int64_t width, at::Device device)
    : buffer(at::full({rows + 1, length, width}, std::numeric_limits<float>::quiet_NaN(),
                      at::device(device).dtype(at::kFloat))),
      count(at::zeros({rows + 1}, at::device(device).dtype(at::kLong))) {}

void Rings::fold(const at::Tensor& keys, const at::Tensor& items, const at::Tensor& valid) {
  const int64_t rows = buffer.size(0) - 1, length = buffer.size(1);
  const auto target = at::where(valid, keys, at::full_like(keys, rows));
  const auto ranks = rank_within_key(target);
  // When more items than places arrive at once, only the last `length` stay: no place is written twice, so the result
  // does not depend on the order of writes.
  const auto kept = valid & (ranks.rank >= ranks.count - length);
  const auto ring = at::where(kept, target, at::full_like(target, rows));
  const auto place = at::remainder(count.index_select(0, target) + ranks.rank, length);
  buffer.index_put_({ring, place}, items);
  count.index_add_(0, target, at::ones_like(target));
}

at::Tensor Rings::values() const {
  return buffer.slice(0, 0, buffer.size(0) - 1);
}
at::Tensor Rings::counts() const {
  return count.slice(0, 0, count.size(0) - 1);
}

Robust robust(const at::Tensor& values) {
  const auto flat = values.select(-1, 0);
  const auto median = lower_median(flat);
  const auto mad = lower_median((flat - median).abs()).squeeze(-1);
  return {median.squeeze(-1), 1.4826 * mad, at::isnan(flat).logical_not().sum(-1)};
}

}  // namespace memsieve
