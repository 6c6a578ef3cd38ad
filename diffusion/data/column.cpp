#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/data/column.h>

#include <cmath>

namespace memsieve::diffusion {

namespace {

// `bad` [B] bool: throws for the first row for which it holds. `ids` names rows, empty = 0, 1, 2 ...
void refuse_rows(const at::Tensor& bad, const std::string& where, const std::vector<int64_t>& ids,
                 const std::string& what) {
  if (!bad.any().item<bool>()) return;
  const int64_t row = bad.nonzero()[0].item<int64_t>();
  throw DataError(where + ": row " + std::to_string(ids.empty() ? row : ids[row]) + " holds " + what);
}

}  // namespace

void check_finite(const at::Tensor& values, const std::string& where, const std::vector<int64_t>& ids) {
  if (!values.is_floating_point()) return;
  refuse_rows(values.isfinite().flatten(1).all(1).logical_not(), where, ids,
              "a NaN or Inf; repair or leave out that row");
}

void Column::check(const at::Tensor& values, const std::vector<int64_t>& ids) const {
  check_finite(values, array.where(), ids);
  if (!positive) return;
  refuse_rows(values.flatten(1).lt(0).any(1), array.where(), ids,
              "a negative number; store standard deviations, not logarithms of variances");
}

void Column::hold() {
  if (!there()) return;
  cache = array.read();
  check(cache, {});
}

at::Tensor Column::rows(const std::vector<int64_t>& ids) const {
  if (!there()) return {};
  if (cache.defined()) return cache.index_select(0, at::tensor(ids, at::kLong));
  at::Tensor values = array.read_rows(ids);
  check(values, ids);
  return values;
}

at::Tensor Column::real_rows(const std::vector<int64_t>& ids) const {
  const at::Tensor values = rows(ids);
  return values.defined() ? values.to(at::kFloat) : values;
}

at::Tensor Column::real_rows(const std::vector<int64_t>& ids, const Column& other, const at::Tensor& from_other) const {
  if (!there() || !from_other.defined()) return real_rows(ids);
  std::vector<int64_t> mine, theirs;
  const auto elsewhere = from_other.accessor<bool, 1>();
  for (size_t i = 0; i < ids.size(); ++i) (elsewhere[static_cast<int64_t>(i)] ? theirs : mine).push_back(ids[i]);
  const at::Tensor both = at::cat({real_rows(mine), other.real_rows(theirs)});
  // A stable sort by column is the order of `both`; its inverse leads back to that of `ids`.
  return at::empty_like(both).index_copy_(0, at::argsort(from_other, /*stable=*/true), both);
}

Codec read_codec(const Hdf5Array& images) {
  Codec codec;
  const auto mean = images.attribute("mean", 3), std = images.attribute("std", 3);
  for (int c = 0; c < 3; ++c) {
    codec.mean[c] = mean[c];
    codec.std[c] = std[c];
    // In float32, as pictures are encoded: a double may round to 0 or to infinity there.
    const auto m = static_cast<float>(mean[c]), s = static_cast<float>(std[c]);
    if (!(s > 0) || !std::isfinite(s) || !std::isfinite((1 + std::abs(m)) / s))
      throw DataError(images.where() +
                      ": attributes 'mean' and 'std' must be finite, and 'std' above 0, in float32; so must be their "
                      "ratio");
  }
  const double factor = images.attribute("pixel_unshuffle", 1)[0];
  if (!(factor >= 1 && factor <= 64) || factor != std::floor(factor))
    throw DataError(images.where() + ": attribute 'pixel_unshuffle' must be an integer from 1 to 64");
  codec.factor = static_cast<int64_t>(factor);
  const auto& shape = images.shape();
  if (shape[1] != 3) throw DataError(images.where() + ": has " + std::to_string(shape[1]) + " channels, expected 3");
  if (shape[2] % codec.factor || shape[3] % codec.factor)
    throw DataError(images.where() + ": " + std::to_string(shape[2]) + " x " + std::to_string(shape[3]) +
                    " pixels cannot be divided by pixel_unshuffle " + std::to_string(codec.factor));
  return codec;
}

LatentScale read_latent_scale(const Hdf5Array& latents) {
  const LatentScale scale{latents.attribute_or("scaling_factor", 1), latents.attribute_or("shift_factor", 0)};
  const auto factor = static_cast<float>(scale.scaling_factor), shift = static_cast<float>(scale.shift_factor);
  if (!(factor > 0) || !std::isfinite(factor) || !std::isfinite(shift))
    throw DataError(
        latents.where() +
        ": attributes 'scaling_factor' and 'shift_factor' must be finite, and 'scaling_factor' above 0, in float32");
  return scale;
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : " x ") + std::to_string(n);
  return text;
}

}  // namespace memsieve::diffusion
