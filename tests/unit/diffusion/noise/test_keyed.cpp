// Keyed randomness: what a row draws depends on its key alone.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <diffusion/noise/keyed.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <set>

namespace of_test_keyed {

using namespace memsieve::diffusion;

TEST_CASE("noise of a row does not depend on how rows are split over ranks and batches") {
  const std::vector<int64_t> shape{3, 4, 5};
  const auto whole = keyed_normal(7, Stream::train_noise, place_keys(11, 0, 12), shape);
  for (const int64_t part : {1, 3, 4, 6}) {
    std::vector<at::Tensor> pieces;
    for (int64_t first = 0; first < 12; first += part)
      pieces.push_back(keyed_normal(7, Stream::train_noise, place_keys(11, first, part), shape));
    REQUIRE(at::equal(at::cat(pieces), whole));
  }
  const auto backwards = keyed_normal(7, Stream::train_noise, {{11, 5}, {11, 2}}, shape);
  REQUIRE(at::equal(backwards[0], whole[5]));
  REQUIRE(at::equal(backwards[1], whole[2]));
}

TEST_CASE("noise does not depend on the number of threads") {
  const auto keys = place_keys(3, 0, 16);
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = keyed_normal(1, Stream::train_noise, keys, {33});
  at::set_num_threads(4);
  const auto four = keyed_normal(1, Stream::train_noise, keys, {33});
  at::set_num_threads(threads);
  REQUIRE(at::equal(one, four));
}

TEST_CASE("seed, stream, step and place each change what is drawn") {
  std::set<uint64_t> seen;
  int count = 0;
  for (uint64_t seed : {0, 1, 2})
    for (const Stream stream :
         {Stream::shuffle, Stream::train_noise, Stream::train_timestep, Stream::train_caption, Stream::held_out_noise,
          Stream::reference_noise, Stream::validation_noise, Stream::validation_timestep, Stream::draw_noise})
      for (int64_t step = -2; step < 4; ++step)
        for (int64_t place = 0; place < 4; ++place, ++count) seen.insert(keyed_bits(seed, stream, {step, place}));
  REQUIRE(static_cast<int>(seen.size()) == count);
}

TEST_CASE("streams are uncorrelated, values are standard normal") {
  const auto keys = place_keys(0, 0, 64);
  const auto a = keyed_normal(5, Stream::train_noise, keys, {1001});
  const auto b = keyed_normal(5, Stream::held_out_noise, keys, {1001});
  const double n = static_cast<double>(a.numel());
  // Means and correlations of n independent values spread as 1 / sqrt(n), variances as sqrt(2 / n).
  REQUIRE(std::abs(a.mean().item<double>()) < 5 / std::sqrt(n));
  REQUIRE(std::abs(a.square().mean().item<double>() - 1) < 5 * std::sqrt(2 / n));
  REQUIRE(std::abs((a * b).mean().item<double>()) < 5 / std::sqrt(n));
  REQUIRE(std::abs((a.narrow(1, 0, 1000) * a.narrow(1, 1, 1000)).mean().item<double>()) < 5 / std::sqrt(n));
  REQUIRE(std::abs((a.narrow(0, 0, 63) * a.narrow(0, 1, 63)).mean().item<double>()) < 5 / std::sqrt(n));
  REQUIRE(std::abs(a.gt(1.959964).to(at::kDouble).mean().item<double>() - 0.025) < 5 * std::sqrt(0.025 / n));
  REQUIRE(a.isfinite().all().item<bool>());
}

TEST_CASE("timesteps are uniform over the whole range") {
  const auto t = keyed_timesteps(5, Stream::train_timestep, place_keys(0, 0, 40000), 10);
  const auto counts = at::bincount(t, {}, 10).to(at::kDouble);
  REQUIRE(counts.size(0) == 10);
  REQUIRE((counts - 4000).abs().max().item<double>() < 5 * 60);  // binomial sd is 60
}

TEST_CASE("caption dropout hits with its probability") {
  const auto keys = place_keys(2, 0, 40000);
  REQUIRE_FALSE(keyed_bernoulli(5, Stream::train_caption, keys, 0).any().item<bool>());
  REQUIRE(keyed_bernoulli(5, Stream::train_caption, keys, 1).all().item<bool>());
  const double share = keyed_bernoulli(5, Stream::train_caption, keys, 0.1).to(at::kDouble).mean().item<double>();
  REQUIRE(std::abs(share - 0.1) < 5 * 0.0015);
}

// From a separate Python implementation of SplitMix64, Philox 4x32-10 and Box-Muller. If these change, old runs cannot
// be resumed or repeated.
TEST_CASE("the numbers never change") {
  const auto noise = keyed_normal(1, Stream::train_noise, {{2, 3}}, {4})[0];
  const auto t = keyed_timesteps(1, Stream::train_timestep, {{2, 3}, {2, 4}}, 1000);
  REQUIRE(keyed_bits(1, Stream::train_noise, {2, 3}) == 13861329990936490393ULL);
  const double expected[] = {1.7232765324426893, 0.6545839412566321, 2.3340381573119737, 0.3376821831947262};
  for (int i = 0; i < 4; ++i) CHECK(noise[i].item<double>() == Approx(expected[i]).epsilon(1e-6));
  REQUIRE((t[0].item<int64_t>() == 812 && t[1].item<int64_t>() == 517));
}

TEST_CASE("no rows, no noise") {
  REQUIRE(keyed_normal(1, Stream::train_noise, {}, {2, 2}).sizes() == at::IntArrayRef({0, 2, 2}));
}

}  // namespace of_test_keyed
