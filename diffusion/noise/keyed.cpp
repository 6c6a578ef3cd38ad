#include <ATen/core/PhiloxRNGEngine.h>
#include <ATen/ops/empty.h>
#include <diffusion/noise/keyed.h>
#include <memsieve/detail/hash.h>

#include <cmath>
#include <numbers>

namespace memsieve::diffusion {

namespace {

using detail::split_mix64;

// In (0, 1], so that its logarithm is finite.
double unit_interval(uint32_t bits) {
  return (static_cast<double>(bits) + 1.0) * 0x1p-32;
}

void fill_normal(uint64_t key, float* out, int64_t count) {
  at::Philox4_32 engine(key, 0, 0);
  for (int64_t i = 0; i < count; i += 2) {
    // In double: single-precision logarithms and sines differ more between C libraries than we want noise to.
    const double radius = std::sqrt(-2.0 * std::log(unit_interval(engine())));
    const double angle = 2.0 * std::numbers::pi * unit_interval(engine());
    out[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < count) out[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

}  // namespace

std::vector<RowKey> place_keys(int64_t step, int64_t first_place, int64_t count) {
  std::vector<RowKey> keys(count);
  for (int64_t i = 0; i < count; ++i) keys[i] = {step, first_place + i};
  return keys;
}

uint64_t keyed_bits(uint64_t seed, Stream stream, RowKey row) {
  uint64_t h = split_mix64(seed);
  h = split_mix64(h ^ static_cast<uint64_t>(stream));
  h = split_mix64(h ^ static_cast<uint64_t>(row.first));
  return split_mix64(h ^ static_cast<uint64_t>(row.second));
}

int64_t keyed_below(uint64_t bits, int64_t bound) {
  return static_cast<int64_t>(((bits >> 32) * static_cast<uint64_t>(bound)) >> 32);
}

at::Tensor keyed_normal(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, at::IntArrayRef shape) {
  std::vector<int64_t> sizes{static_cast<int64_t>(rows.size())};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  at::Tensor noise = at::empty(sizes, at::TensorOptions().dtype(at::kFloat));
  const int64_t row_size = rows.empty() ? 0 : noise.numel() / noise.size(0);
  float* out = noise.data_ptr<float>();
  for (const RowKey& row : rows) {
    fill_normal(keyed_bits(seed, stream, row), out, row_size);
    out += row_size;
  }
  return noise;
}

at::Tensor keyed_timesteps(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, int64_t num_timesteps) {
  at::Tensor t = at::empty({static_cast<int64_t>(rows.size())}, at::TensorOptions().dtype(at::kLong));
  int64_t* out = t.data_ptr<int64_t>();
  for (const RowKey& row : rows) *out++ = keyed_below(keyed_bits(seed, stream, row), num_timesteps);
  return t;
}

at::Tensor keyed_bernoulli(uint64_t seed, Stream stream, const std::vector<RowKey>& rows, double probability) {
  at::Tensor hit = at::empty({static_cast<int64_t>(rows.size())}, at::TensorOptions().dtype(at::kBool));
  bool* out = hit.data_ptr<bool>();
  // in [0, 1)
  for (const RowKey& row : rows)
    *out++ = static_cast<double>(keyed_bits(seed, stream, row) >> 11) * 0x1p-53 < probability;
  return hit;
}

}  // namespace memsieve::diffusion
