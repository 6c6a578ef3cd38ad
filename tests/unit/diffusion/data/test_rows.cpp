// Rows on their way to the model: what is drawn follows the key of the visit, whoever draws it and when.
#include <ATen/ATen.h>
#include <diffusion/noise/schedule.h>
#include <diffusion/data/rows.h>
#include <support/hdf5_writer.h>

#include <catch2/catch.hpp>

namespace of_test_rows {

using namespace memsieve::diffusion;
using namespace memsieve::testing;

namespace {

struct World {
  TemporaryFolder folder;
  NoiseSchedule schedule{ScheduleConfig{}, c10::kCPU};

  RowMaker open(const std::string& name) const { return {Dataset::open(folder.file(name)), schedule, c10::kCPU}; }
};

at::Tensor steps(int64_t rows) {
  return at::full({rows}, 500, at::kLong);
}

}  // namespace

TEST_CASE("latents of a distribution are drawn anew at every visit, by the key of the visit") {
  const World world;
  write_distributions(world.folder.file("set.h5"));
  const RowMaker maker = world.open("set.h5");
  const std::vector<int64_t> ids{4, 1, 4};
  const auto visit = [&](int64_t step, uint64_t seed = 3) {
    return maker.gather(ids, ids, steps(3), maker.noise(seed, kTrainNoise, place_keys(step, 8, 3), {}));
  };
  const HostRows rows = visit(5);
  const Rows stored = maker.data().load(ids);
  const auto noise = keyed_normal(3, Stream::train_latent, place_keys(5, 8, 3), {4, 2, 2});
  REQUIRE(at::equal(rows.latents, sample_latents(stored, noise)));
  REQUIRE(at::equal(rows.noise, keyed_normal(3, Stream::train_noise, place_keys(5, 8, 3), {4, 2, 2})));
  REQUIRE(at::equal(visit(5).latents, rows.latents));
  REQUIRE_FALSE(at::equal(visit(6).latents, rows.latents));
  REQUIRE_FALSE(at::equal(visit(5, 4).latents, rows.latents));
  // One sample twice in a batch is two visits.
  REQUIRE_FALSE(at::equal(rows.latents[0], rows.latents[2]));
  // Two ranks with some of the rows each draw what one rank with all of them draws.
  const auto part = [&](int64_t first, int64_t count) {
    const std::vector<int64_t> mine(ids.begin() + first, ids.begin() + first + count);
    return maker.gather(mine, mine, steps(count), maker.noise(3, kTrainNoise, place_keys(5, 8 + first, count), {}));
  };
  REQUIRE(at::equal(at::cat({part(0, 1).latents, part(1, 2).latents}), rows.latents));
  REQUIRE(at::equal(maker.make(rows).noisy, maker.schedule().add_noise(rows.latents, rows.noise, steps(3))));
}

TEST_CASE("training, held-out, reference and validation rows draw from streams of their own") {
  const World world;
  write_distributions(world.folder.file("set.h5"));
  const RowMaker maker = world.open("set.h5");
  std::vector<at::Tensor> drawn;
  for (const auto& streams : {kTrainNoise, kHeldOutNoise, kReferenceNoise, kValidationNoise}) {
    const RowNoise noise = maker.noise(3, streams, place_keys(0, 0, 2), {});
    drawn.push_back(noise.target);
    drawn.push_back(noise.latent);
  }
  for (size_t i = 0; i < drawn.size(); ++i)
    for (size_t j = 0; j < i; ++j) REQUIRE_FALSE(at::equal(drawn[i], drawn[j]));
}

TEST_CASE("sets without distributions draw no second noise") {
  const World world;
  write_latents(world.folder.file("set.h5"));
  const RowMaker maker = world.open("set.h5");
  const RowNoise noise = maker.noise(3, kTrainNoise, place_keys(0, 0, 2), {});
  REQUIRE_FALSE(noise.latent.defined());
  REQUIRE(at::equal(maker.gather({2, 3}, {2, 3}, steps(2), noise).latents, maker.data().load({2, 3}).latents));
}

TEST_CASE("rows without caption keep their time_ids and lose text and pooled text") {
  const World world;
  write_sdxl(world.folder.file("set.h5"));
  const RowMaker maker = world.open("set.h5");
  const RowNoise noise = maker.noise(3, kTrainNoise, place_keys(0, 0, 2), {});
  const NoisyRows rows = maker.make({2, 3}, {20, 30}, steps(2), noise, at::tensor({1, 0}, at::kLong).to(at::kBool));
  const Rows stored = maker.data().load({2, 3});
  REQUIRE(at::equal(rows.condition.text[0], maker.data().null().text));
  REQUIRE(at::equal(rows.condition.pooled[0], maker.data().null().pooled));
  REQUIRE(at::equal(rows.condition.text[1], stored.condition.text[1]));
  REQUIRE(at::equal(rows.condition.pooled[1], stored.condition.pooled[1]));
  REQUIRE(at::equal(rows.condition.time_ids, stored.condition.time_ids));
  REQUIRE(at::equal(rows.captioned, at::tensor({0, 1}, at::kLong).to(at::kBool)));
  REQUIRE(at::equal(rows.ids, at::tensor({20, 30}, at::kLong)));
}

}  // namespace of_test_rows
