#include <memsieve/error.h>
#include <diffusion/data/sampler.h>
#include <diffusion/noise/keyed.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

namespace memsieve::diffusion {

namespace {

void require_positive(int64_t value, const char* name) {
  if (value < 1)
    throw ConfigError(std::string("sampler: ") + name + " is " + std::to_string(value) + "; it must be at least 1");
}

}  // namespace

Sampler::Sampler(int64_t dataset_size, int64_t world_size, int64_t rows_per_micro_batch, int64_t micro_batches,
                 uint64_t seed, Repeats repeats)
    : size_(dataset_size),
      world_size_(world_size),
      rows_(rows_per_micro_batch),
      micro_batches_(micro_batches),
      seed_(seed) {
  require_positive(size_, "dataset_size");
  require_positive(world_size_, "world_size");
  require_positive(rows_, "train_batch_size");
  require_positive(micro_batches_, "gradient_accumulation_steps");
  if (repeats == Repeats::allowed) return;
  // Divided, not multiplied: a product of careless settings could overflow.
  const int64_t most = size_ / world_size_ / rows_;
  if (micro_batches_ > most)
    throw ConfigError("sampler: a global batch of " + std::to_string(world_size_) + " ranks x " +
                      std::to_string(rows_) + " rows x " + std::to_string(micro_batches_) +
                      " micro-batches is larger than the data set of " + std::to_string(size_) +
                      " rows; lower train_batch_size or gradient_accumulation_steps");
}

std::vector<int64_t> Sampler::global_batch(int64_t step) const {
  return slice(step * global_batch_size(), global_batch_size());
}

Filled Sampler::fill(int64_t position, const std::function<bool(int64_t id)>& passes_over) const {
  Filled batch;
  const int64_t rows = global_batch_size(), last = position + kMostWalked * rows;
  while (static_cast<int64_t>(batch.ids.size()) < rows) {
    const int64_t id = sample_at(position);
    (position < last && passes_over(id) ? batch.passed_over : batch.ids).push_back(id);
    ++position;
  }
  batch.end = position;
  return batch;
}

std::vector<int64_t> Sampler::rows(int64_t step, int64_t micro, int64_t rank) const {
  return slice(step * global_batch_size() + place(micro, rank, 0), rows_);
}

std::vector<int64_t> Sampler::slice(int64_t first, int64_t count) const {
  std::vector<int64_t> ids;
  ids.reserve(count);
  for (int64_t at = first; at < first + count; ++at) ids.push_back(sample_at(at));
  return ids;
}

const std::vector<int64_t>& Sampler::permutation(int64_t epoch) const {
  // neighbouring epochs, which one batch may span, never evict each other
  const int slot = static_cast<int>(epoch % 2);
  if (cached_epoch_[slot] != epoch) {
    cached_[slot] = epoch_permutation(size_, seed_, epoch);
    cached_epoch_[slot] = epoch;
  }
  return cached_[slot];
}

std::vector<int64_t> epoch_permutation(int64_t size, uint64_t seed, int64_t epoch) {
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t i = size - 1; i > 0; --i) {
    const uint64_t bits = keyed_bits(seed, Stream::shuffle, {epoch, i});
    std::swap(order[i], order[keyed_below(bits, i + 1)]);
  }
  return order;
}

}  // namespace memsieve::diffusion
