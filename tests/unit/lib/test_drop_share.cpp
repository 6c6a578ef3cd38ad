// What the recommended rule takes from a data set in which nothing is memorised.
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_drop_share {

using memsieve::Sieve;

namespace {

constexpr int64_t kSamples = 2000, kPictures = 256, kRows = 100, kEpochs = 12;

at::Tensor normal(int64_t rows, uint64_t seed) {
  return at::randn({rows}, at::detail::createCPUGenerator(seed));
}

/// Visits of pictures that differ in easiness under a model that learns all of them alike: both signals are log-normal,
/// with noise of their own at every visit.
memsieve::Batch visits(const at::Tensor& labels, const at::Tensor& easiness, const at::Tensor& t, int64_t step,
                       uint64_t seed) {
  const int64_t rows = labels.size(0);
  const double learned = static_cast<double>(step) * kRows / kSamples * 0.05;
  const auto trend = t.to(at::kFloat) / 500 - learned;
  const auto error = (trend - easiness + 0.4 * normal(rows, 2 * seed)).exp();
  const auto magnitude = (0.5 * easiness - trend + 0.4 * normal(rows, 2 * seed + 1)).exp();
  return toy::scripted(labels, t, error, magnitude);
}

void show_start_model(Sieve& sieve, const at::Tensor& easiness, bool held_out) {
  const int64_t draws = sieve.reference_draws(), count = easiness.size(0);
  for (int64_t d = 0; d < draws; ++d) {
    const auto t = at::full({count}, (static_cast<double>(d) + 0.5) / static_cast<double>(draws) * 1000);
    sieve.reference(visits(at::arange(count), easiness, t, 0, 77000 + 100 * d + held_out), held_out);
  }
}

}  // namespace

TEST_CASE("configs/evidence2026.yaml drops few visits of data without copies, also after many epochs", "[sieve]") {
  auto setup = toy::setup(kSamples, kRows);
  setup.held_out_size = kPictures;
  setup.overrides = {"sieve.held_out.rows=32"};
  auto sieve =
      Sieve::from_yaml(MEMSIEVE_SOURCE_DIR "/configs/evidence2026.yaml", std::make_shared<memsieve::SoloComm>(), setup);
  const auto easiness = 0.4 * normal(kSamples, 1), held_out_easiness = 0.4 * normal(kPictures, 2);
  show_start_model(sieve, easiness, false);
  show_start_model(sieve, held_out_easiness, true);
  sieve.finish_reference();
  std::vector<double> share(kEpochs);
  constexpr int64_t kPerEpoch = kSamples / kRows;
  for (int64_t step = 0; step < kEpochs * kPerEpoch; ++step) {
    const int64_t epoch = step / kPerEpoch;
    const auto order = at::randperm(kSamples, at::detail::createCPUGenerator(500 + epoch), at::kLong);
    const auto ids = order.slice(0, step % kPerEpoch * kRows, (step % kPerEpoch + 1) * kRows).contiguous();
    const auto t = at::randint(1000, {kRows}, at::detail::createCPUGenerator(9000 + step), at::kLong);
    const auto plan = sieve.inspect(visits(ids, easiness.index_select(0, ids), t, step, 10000 + step), {step, epoch});
    std::vector<int64_t> labels, pictures;
    std::vector<float> at_timestep;
    for (const auto& visit : sieve.held_out_visits(step)) {
      labels.push_back(visit.id);
      pictures.push_back(visit.picture);
      at_timestep.push_back(static_cast<float>(visit.timestep_fraction * 1000));
    }
    if (!labels.empty()) {
      const auto own = held_out_easiness.index_select(0, at::tensor(pictures, at::kLong));
      sieve.observe(visits(at::tensor(labels, at::kLong), own, at::tensor(at_timestep), step, 30000 + step),
                    {step, epoch});
    }
    sieve.end_step({step, epoch});
    share[static_cast<size_t>(epoch)] += 1 - plan.weight().mean().item<double>();
  }
  // Measured: 2.7% to 4.1% from the third epoch on. The larger part are visits of samples that wait for their release:
  // with a release as strict as the drop it is 1.2%.
  double late = 0;
  for (size_t epoch = 0; epoch < kEpochs; ++epoch) {
    INFO("epoch " << epoch);
    CHECK(share[epoch] / kPerEpoch < 0.06);
    if (epoch >= kEpochs / 2) late += share[epoch] / kPerEpoch / (kEpochs / 2);
  }
  CHECK(late > 0.025);
  CHECK(late < 0.05);
}

}  // namespace of_test_drop_share
