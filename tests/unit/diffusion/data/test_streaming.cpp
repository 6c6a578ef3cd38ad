// Sets that do not fit the cache: rows come by way of the prefetcher, and memory stays where it was.
#include <ATen/ATen.h>
#include <diffusion/data/dataset.h>
#include <diffusion/data/prefetch.h>
#include <diffusion/data/sampler.h>
#include <unistd.h>
#include <support/hdf5_writer.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>

namespace of_test_streaming {

using namespace memsieve::diffusion;
using namespace memsieve::testing;

namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

int64_t resident_bytes() {
  int64_t size = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> size >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

/// A sound set with `rows` rows of 64 KiB of latents, which are the row's number.
void write_wide(const std::string& path, int64_t rows, int64_t chunk) {
  auto file = write_latents(path, rows);
  file.remove("/latents");
  file.tensor("/latents", at::arange(rows, at::kFloat).view({rows, 1, 1, 1}).expand({rows, 4, 64, 64}).contiguous(),
              chunk);
}

}  // namespace

TEST_CASE("a set larger than the cache is trained on in bounded memory") {
  constexpr int64_t kRows = 2048, kBatch = 8, kAhead = 2;
  const TemporaryFolder folder;
  for (const int64_t chunk : {0, 1, 64}) {
    write_wide(folder.file("wide.h5"), kRows, chunk);
    const int64_t before = resident_bytes();
    const auto set = Dataset::open(folder.file("wide.h5"), {.cache_bytes = kMiB});
    REQUIRE_FALSE(set.cached());
    const Sampler sampler(kRows, 1, kBatch, 1, 7);
    // Chunks of many rows are read whole for each row, so fewer of them: the test is about memory.
    const int64_t steps = chunk > 1 ? 24 : kRows / kBatch;
    const Sampler same = sampler;  // a sampler is one thread's
    Prefetcher<Rows> rows([&](int64_t step) { return set.load(sampler.rows(step, 0, 0)); }, 0, steps, kAhead);
    int64_t most = before;
    bool right = true;
    for (int64_t step = 0; step < steps; ++step) {
      const Rows got = rows.take(step);
      const at::Tensor numbers = got.ids.to(at::kFloat);
      right = right && at::equal(got.latents.flatten(1).amin(1), numbers) &&
              at::equal(got.latents.flatten(1).amax(1), numbers) &&
              at::equal(got.ids, at::tensor(same.rows(step, 0, 0), at::kLong));
      most = std::max(most, resident_bytes());
    }
    REQUIRE(right);
    INFO("chunk " << chunk << ": " << (most - before) / kMiB << " MiB more than before it was opened");
    REQUIRE(most - before < 24 * kMiB);  // the file has 128 MiB, a batch 512 KiB, a chunk of 64 rows 4 MiB
  }
}

}  // namespace of_test_streaming
