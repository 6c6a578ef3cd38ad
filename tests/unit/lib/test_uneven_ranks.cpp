// Held-out rows and looks that the ranks cannot share evenly: each rank has as many, since each costs a forward pass
// that shards of a model are gathered for, and the result is one rank's.
#include <cmath>
#include <map>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_uneven_ranks {

using memsieve::Sieve;

namespace {

constexpr int64_t kSamples = 24, kRows = 12, kSteps = 40, kHeldOut = 4, kLooks = 4;

const std::string kRule = R"(
sieve:
  filters: {magnitude: {scale: log}, prediction_error: {}}
  standardise: {by: timestep, population: held_out, bins: 2, window: 16, min_count: 4}
  evidence: {kind: ledger, visits: 4, min_visits: 1}
  threshold: {kind: held_out, drop: 0.3, release: 0.5}
  action: {pass_over: true}
  revisit: {rows: 4, every: 2}
  probe: {kind: every}
  held_out: {rows: 4}
)";

/// What visits or looks are shown: the rows at their places of the step, NaN where no row of a single rank is.
template <typename Seen>
memsieve::Batch shown(const toy::Model& model, const std::vector<Seen>& seen, uint64_t seed, int64_t step,
                      int64_t rows) {
  auto all = toy::make_step(12, kSamples, seed, step);
  all.x.slice(0, rows).fill_(std::nan(""));
  for (const auto& one : seen) {
    all.ids[one.place] = one.id;
    all.t[one.place] = static_cast<int64_t>(one.timestep_fraction * 1000);
  }
  return toy::batch_of(model, all, seen.front().place, seen.back().place + 1);
}

/// The state after all steps, and the weights of all rows in global order.
std::map<std::string, at::Tensor> run(int64_t ranks) {
  std::map<std::string, at::Tensor> result;
  std::vector<at::Tensor> weights(kSteps);
  const auto errors = toy::on_ranks(ranks, [&](const auto& comm) {
    auto setup = toy::setup(kSamples, kRows, ranks);
    setup.held_out_size = 6;
    auto sieve = Sieve::from_text(kRule, "test", comm, setup);
    const toy::Model model;
    const int64_t rows = kRows / ranks, rank = comm->rank();
    for (int64_t s = 0; s < kSteps; ++s) {
      const auto step = toy::make_step(kRows, kSamples, 7, s);
      const auto plan = sieve.inspect(toy::batch_of(model, step, rank * rows, (rank + 1) * rows), {s, 0});
      const auto visits = sieve.held_out_visits(s);
      if (visits.size() != static_cast<size_t>((kHeldOut + ranks - 1) / ranks))
        throw std::runtime_error(std::to_string(visits.size()) + " held-out visits");
      sieve.observe(shown(model, visits, 8, s, kHeldOut), {s, 0});
      const auto looks = sieve.looks(s);
      if (looks.size() != (s % 2 == 0 ? static_cast<size_t>((kLooks + ranks - 1) / ranks) : 0))
        throw std::runtime_error(std::to_string(looks.size()) + " looks");
      if (!looks.empty()) sieve.look(shown(model, looks, 6, s, kLooks), {s, 0});
      sieve.end_step({s, 0});
      const auto all = comm->all_gather(plan.weight());
      if (rank == 0) weights[static_cast<size_t>(s)] = all.reshape({-1});
    }
    if (rank == 0) result = sieve.state();
  });
  REQUIRE(errors == std::vector<std::string>(static_cast<size_t>(ranks)));
  result["weights"] = at::cat(weights);
  return result;
}

}  // namespace

TEST_CASE("law 4: ranks that share held-out rows and looks unevenly have equally many, and decide as one", "[law]") {
  const auto alone = run(1);
  CHECK(alone.at("weights").eq(0).sum().item<int64_t>() > 20);
  CHECK(alone.at("flags").sum().item<int64_t>() > 2);
  for (const int64_t ranks : {3, 6}) {
    INFO(ranks << " ranks");
    const auto several = run(ranks);
    REQUIRE(several.size() == alone.size());
    for (const auto& [name, tensor] : alone) {
      INFO(name);
      // But for the last place of rings, which takes what is not kept.
      const bool ring = name.find("scores") == 0 || name.find("windows") == 0;
      const auto kept = [&](const at::Tensor& t) { return ring ? t.slice(0, 0, -1) : t; };
      CHECK(at::allclose(kept(tensor), kept(several.at(name)), 0, 0, /*equal_nan=*/true));
    }
  }
}

}  // namespace of_test_uneven_ranks
