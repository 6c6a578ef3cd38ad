#pragma once
// Which rows does optimiser step s see? A pure function of the seed, so a resumed run and any number of ranks agree.

#include <cstdint>
#include <functional>
#include <vector>

namespace memsieve::diffusion {

/// A global batch that some samples of the stream were left out of.
struct Filled {
  /// [global_batch_size()]
  std::vector<int64_t> ids;
  /// those that were passed over, as they came
  std::vector<int64_t> passed_over;
  /// position in the stream after the last of them
  int64_t end = 0;
};

/// Whether a batch may hold a row more than once, as it must where the set is smaller than the batch.
enum class Repeats { refused, allowed };

/// Walks through epoch after epoch of the data set, each shuffled anew by (seed, epoch), in global batches of
/// world_size * rows * micro_batches; batches run across epoch borders, so no row is left out. A global batch is laid
/// out [micro][rank][row]: 2 ranks of 4 rows, 1 rank of 8 and 1 rank of 2 x 4 see the same rows in the same places.
class Sampler {
 public:
  /// Throws ConfigError for sizes below 1 and, unless repeats are allowed, for a global batch larger than the data set.
  Sampler(int64_t dataset_size, int64_t world_size, int64_t rows_per_micro_batch, int64_t micro_batches, uint64_t seed,
          Repeats repeats = Repeats::refused);

  int64_t rows_per_micro_batch() const { return rows_; }
  int64_t global_batch_size() const { return world_size_ * rows_ * micro_batches_; }
  /// Epoch of a position in the stream, which is all epochs one after another.
  int64_t epoch_at(int64_t position) const { return position / size_; }
  /// Epoch of the first row of a step. Steps count from 0.
  int64_t epoch(int64_t step) const { return step * global_batch_size() / size_; }
  /// Place of a row in the global batch: key noise by (step, place).
  int64_t place(int64_t micro, int64_t rank, int64_t row) const { return (micro * world_size_ + rank) * rows_ + row; }

  /// [global_batch_size()] sample ids of a step.
  std::vector<int64_t> global_batch(int64_t step) const;
  /// The batch that begins at `position` of the stream and takes what comes but samples for which `passes_over` holds:
  /// those that follow fill their places. It ends whatever is passed over: after kMostWalked global batches of
  /// positions it takes what comes. Pure, if `passes_over` is.
  Filled fill(int64_t position, const std::function<bool(int64_t id)>& passes_over) const;
  static constexpr int64_t kMostWalked = 16;
  /// [rows_per_micro_batch] sample ids of one micro-batch on one rank: places place(micro, rank, 0) onwards.
  std::vector<int64_t> rows(int64_t step, int64_t micro, int64_t rank) const;

 private:
  int64_t sample_at(int64_t position) const { return permutation(position / size_)[position % size_]; }
  std::vector<int64_t> slice(int64_t first, int64_t count) const;
  const std::vector<int64_t>& permutation(int64_t epoch) const;

  int64_t size_, world_size_, rows_, micro_batches_;
  uint64_t seed_;
  // The last permutations made; a cache only, so one Sampler belongs to one thread.
  mutable int64_t cached_epoch_[2] = {-1, -1};
  mutable std::vector<int64_t> cached_[2];
};

/// The permutation of 0..size-1 that epoch `epoch` walks through: Fisher-Yates over keyed random bits, the same on
/// every machine and standard library.
std::vector<int64_t> epoch_permutation(int64_t size, uint64_t seed, int64_t epoch);

}  // namespace memsieve::diffusion
