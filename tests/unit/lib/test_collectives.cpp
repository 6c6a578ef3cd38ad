// Law 1: which collectives run, and how many of what size, depends on the configuration alone.
#include <support/thread_ranks.h>
#include <support/toy.h>

#include <mutex>
#include <set>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_collectives {

using memsieve::Communicator;
using memsieve::Sieve;

namespace {

/// Counts collectives and remembers their sizes.
struct Counting final : Communicator {
  explicit Counting(std::shared_ptr<Communicator> inner) : inner(std::move(inner)) {}
  int64_t rank() const override { return inner->rank(); }
  int64_t size() const override { return inner->size(); }
  at::Tensor all_gather(const at::Tensor& record) override {
    sizes.push_back(record.numel());
    return inner->all_gather(record);
  }
  std::shared_ptr<Communicator> inner;
  std::vector<int64_t> sizes;
};

/// Samples or pictures `ids` at timestep `t`.
memsieve::Batch draw_of(const toy::Model& model, const at::Tensor& ids, int64_t t, uint64_t seed) {
  auto step = toy::make_step(ids.size(0), 50, seed, 0);
  step.ids = ids;
  step.t.fill_(t);
  return toy::batch_of(model, step, 0, ids.size(0));
}

constexpr int64_t kSamples = 40, kPictures = 24, kRows = 8, kSteps = 6;

/// What goes wrong in a run, by its name.
bool goes_wrong(const std::string& what, const char* name, int64_t rank) {
  return what == name && rank == 1;
}

/// The sizes of the collectives of each step of one of configs/, and the error it ended with.
std::pair<std::vector<std::vector<int64_t>>, std::string> steps_of(const std::string& config,
                                                                   std::shared_ptr<Communicator> comm,
                                                                   const std::string& what) {
  auto counting = std::make_shared<Counting>(comm);
  auto setup = toy::setup(kSamples, kRows * comm->size(), comm->size());
  setup.held_out_size = kPictures;
  auto sieve = Sieve::from_yaml(MEMSIEVE_SOURCE_DIR "/configs/" + config, counting, setup);
  const toy::Model model;
  const int64_t rank = comm->rank(), draws = sieve.reference_draws();
  for (int64_t d = 0; d < draws; ++d) {
    const int64_t t = (2 * d + 1) * 1000 / (2 * draws);
    sieve.reference(draw_of(model, at::arange(rank, kSamples, comm->size()), t, 100 + d), false);
    sieve.reference(draw_of(model, at::arange(rank, kPictures, comm->size()), t, 200 + d), true);
  }
  sieve.finish_reference();
  std::vector<std::vector<int64_t>> sizes;
  try {
    for (int64_t s = 0; s < kSteps; ++s) {
      counting->sizes.clear();
      const auto step = toy::make_step(kRows * comm->size(), kSamples, 7, s);
      auto batch = toy::batch_of(model, step, rank * kRows, (rank + 1) * kRows);
      batch.counterfactuals["start"] = batch.null_prediction;
      if (goes_wrong(what, "prediction", rank) && s == 4) {
        batch.null_prediction = [](const at::Tensor&) -> at::Tensor { throw std::runtime_error("no luck"); };
        batch.counterfactuals["start"] = batch.null_prediction;
      }
      sieve.inspect(batch, {s, 0}).loss(toy::per_sample_loss(batch));
      const auto visits = sieve.held_out_visits(s);
      if (!visits.empty() && !goes_wrong(what, "no observe", rank)) {
        std::vector<int64_t> ids;
        for (const auto& visit : visits) ids.push_back(visit.id);
        auto seen = draw_of(model, at::tensor(ids, at::kLong), 700, 300 + s);
        seen.counterfactuals["start"] = seen.null_prediction;
        sieve.observe(seen, {s, 0});
      }
      sizes.push_back({});
      try {
        sieve.end_step({s, 0});
        sizes.back() = counting->sizes;
      } catch (...) {
        sizes.back() = counting->sizes;
        throw;
      }
    }
  } catch (const memsieve::PeerError& error) {
    return {sizes, error.what()};
  }
  return {sizes, ""};
}

}  // namespace

TEST_CASE("law 1: one collective of one size per step, whatever the data", "[law]") {
  for (const double threshold : {-1.0, 1.0, 1e9}) {
    std::mutex mutex;
    std::set<std::vector<int64_t>> seen;
    const auto errors = toy::on_ranks(2, [&](auto comm) {
      auto counting = std::make_shared<Counting>(comm);
      auto sieve = Sieve::from_text(toy::published(threshold), "test", counting, toy::setup(50, 16, 2));
      counting->sizes.clear();
      const auto step = toy::make_step(16, 50, 1, 0);
      toy::Model model;
      const auto batch = toy::batch_of(model, step, comm->rank() * 8, comm->rank() * 8 + 8);
      sieve.inspect(batch, {}).loss(toy::per_sample_loss(batch)).backward();
      sieve.end_step({});
      const std::lock_guard lock(mutex);
      seen.insert(counting->sizes);
    });
    for (const auto& error : errors) CHECK(error == "");
    REQUIRE(seen.size() == 1);
    CHECK(seen.begin()->size() == 1);
  }
}

TEST_CASE(
    "law 1: a step of the recommended rules is one collective of one size, with errors and without a rank's observe",
    "[law]") {
  const std::string config = GENERATE("default.yaml", "evidence2026.yaml");
  const std::string what = GENERATE("nothing", "prediction", "no observe");
  CAPTURE(config, what);
  std::mutex mutex;
  std::set<int64_t> sizes;
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    const auto [steps, error] = steps_of(config, comm, what);
    const bool fails = what == "prediction";
    const std::lock_guard lock(mutex);
    CHECK(steps.size() == (fails ? 5 : kSteps));
    for (const auto& step : steps) {
      REQUIRE(step.size() == 1);
      sizes.insert(step[0]);
    }
    CHECK_THAT(error, fails ? Catch::Equals("step 4: rank 1: no luck") : Catch::Equals(""));
  });
  for (const auto& error : errors) CHECK(error == "");
  CHECK(sizes.size() == 1);
}

}  // namespace of_test_collectives
