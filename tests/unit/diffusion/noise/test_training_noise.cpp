// What a row is trained with belongs to the row, and options that are off change nothing.
#include <ATen/ATen.h>
#include <diffusion/noise/training_noise.h>

#include <catch2/catch.hpp>
#include <cmath>

namespace of_test_training_noise {

using namespace memsieve::diffusion;

namespace {

const std::vector<int64_t> kShape{3, 4, 4};

RowNoise noise(const NoiseOptions& options, int64_t first, int64_t count, const NoiseStreams& streams = kTrainNoise) {
  return training_noise(7, streams, place_keys(5, first, count), kShape, options);
}

}  // namespace

TEST_CASE("without options the noise is the plain one, in input and target") {
  const RowNoise plain = noise({}, 0, 6);
  CHECK(at::equal(plain.target, keyed_normal(7, Stream::train_noise, place_keys(5, 0, 6), kShape)));
  CHECK(plain.input.is_same(plain.target));
}

TEST_CASE("offset noise is one number per row and channel, in input and target") {
  NoiseOptions options;
  options.offset = 0.5;
  const RowNoise with = noise(options, 0, 400);
  CHECK(with.input.is_same(with.target));
  const at::Tensor added = (with.target - noise({}, 0, 400).target) / 0.5;
  CHECK(at::allclose(added, added.narrow(2, 0, 1).narrow(3, 0, 1).expand_as(added), 0, 1e-5));
  const at::Tensor numbers = added.select(2, 0).select(2, 0);
  CHECK(numbers.mean().item<double>() == Approx(0).margin(0.1));
  CHECK(numbers.std().item<double>() == Approx(1).margin(0.1));
  // Other rows of the same batch draw numbers of their own; so do the held-out rows of the same keys.
  CHECK_FALSE(at::allclose(numbers[0], numbers[1]));
  CHECK_FALSE(at::allclose(noise(options, 0, 4, kHeldOutNoise).target, noise(options, 0, 4).target));
}

TEST_CASE("a perturbation is in the input alone") {
  NoiseOptions options;
  options.perturbation = 0.1;
  const RowNoise with = noise(options, 0, 100);
  CHECK(at::equal(with.target, noise({}, 0, 100).target));
  const at::Tensor more = (with.input - with.target) / 0.1;
  CHECK(more.std().item<double>() == Approx(1).margin(0.05));
  CHECK(std::abs((more * with.target).mean().item<double>()) < 0.05);
}

TEST_CASE("about half of all visits see the picture mirrored, each row by a draw of its own") {
  CHECK_FALSE(noise({}, 0, 4).flipped.defined());
  NoiseOptions options;
  options.random_flip = true;
  const RowNoise with = noise(options, 0, 1000);
  CHECK(at::equal(with.target, noise({}, 0, 1000).target));
  CHECK(with.flipped.to(at::kDouble).mean().item<double>() == Approx(0.5).margin(0.06));
  CHECK(at::equal(with.flipped.narrow(0, 600, 50), noise(options, 600, 50).flipped));
  for (const NoiseStreams& others : {kHeldOutNoise, kReferenceNoise})
    CHECK_FALSE(at::equal(with.flipped, noise(options, 0, 1000, others).flipped));
}

TEST_CASE("any split of the rows draws the same") {
  NoiseOptions options;
  options.offset = 0.2;
  options.perturbation = 0.1;
  options.timesteps = "logit_normal";
  const RowNoise whole = noise(options, 0, 8), part = noise(options, 5, 3);
  CHECK(at::equal(whole.target.narrow(0, 5, 3), part.target));
  CHECK(at::equal(whole.input.narrow(0, 5, 3), part.input));
  const auto t = [&](int64_t first, int64_t count) {
    return training_timesteps(7, Stream::train_timestep, place_keys(5, first, count), 1000, options);
  };
  CHECK(at::equal(t(0, 8).narrow(0, 5, 3), t(5, 3)));
}

TEST_CASE("uniform timesteps are the plain ones") {
  const auto keys = place_keys(5, 0, 100);
  CHECK(at::equal(training_timesteps(7, Stream::train_timestep, keys, 1000, {}),
                  keyed_timesteps(7, Stream::train_timestep, keys, 1000)));
  CHECK(timestep_at(0.4567, 1000, {}) == 456);
  CHECK(timestep_at(1, 1000, {}) == 999);
}

TEST_CASE("logit-normal timesteps have the logit's mean and spread") {
  NoiseOptions options;
  options.timesteps = "logit_normal";
  options.logit_mean = 0.5;
  options.logit_std = 0.75;
  const at::Tensor t =
      training_timesteps(7, Stream::train_timestep, place_keys(5, 0, 4000), 1000, options).to(at::kDouble);
  const at::Tensor logit = at::logit((t + 0.5) / 1000);
  CHECK(logit.mean().item<double>() == Approx(0.5).margin(0.04));
  CHECK(logit.std().item<double>() == Approx(0.75).margin(0.03));
  // The median, and what lies below it, as the quantile says.
  CHECK(timestep_at(0.5, 1000, options) == static_cast<int64_t>(1000 / (1 + std::exp(-0.5))));
  const auto share = (t < static_cast<double>(timestep_at(0.2, 1000, options))).to(at::kDouble).mean();
  CHECK(share.item<double>() == Approx(0.2).margin(0.02));
  CHECK(timestep_at(0, 1000, options) == 0);
  CHECK(timestep_at(1, 1000, options) == 999);
}

}  // namespace of_test_training_noise
