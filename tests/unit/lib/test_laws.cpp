// The design's laws, on ranks that are threads. tests/collective repeats the distributed ones on processes.
#include <ATen/core/grad_mode.h>

#include <atomic>
#include <numeric>

#include <support/operators.h>
#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_laws {

using memsieve::Communicator;
using memsieve::Sieve;
using toy::published;

namespace {

struct Outcome {
  at::Tensor gradient, scale, skip, weights;
};

/// One optimiser step of rank `rank` of `ranks` on `step`; the gradient is averaged over ranks as DDP does.
Outcome train(Sieve& sieve, Communicator& comm, const toy::Step& step, int64_t micro) {
  toy::Model model;
  const int64_t ranks = comm.size(), rows = step.ids.size(0) / ranks / micro;
  std::vector<at::Tensor> weights;
  for (int64_t m = 0; m < micro; ++m) {
    const int64_t from = (m * ranks + comm.rank()) * rows;
    const auto batch = toy::batch_of(model, step, from, from + rows);
    const auto plan = sieve.inspect(batch, {0, 0});
    weights.push_back(plan.weight());
    plan.loss(toy::per_sample_loss(batch)).backward();
  }
  const auto end = sieve.end_step({0, 0});
  const auto all = comm.all_gather(model.weight.grad().reshape({-1}).contiguous());
  return {all.mean(0) / end.grad_scale, end.grad_scale, end.skip, at::cat(weights)};
}

/// The gradient of sum(w*l)/sum(w) over all rows, by hand.
at::Tensor expected_gradient(const toy::Step& step, const at::Tensor& weights) {
  toy::Model model;
  const auto batch = toy::batch_of(model, step, 0, step.ids.size(0));
  ((weights * toy::per_sample_loss(batch)).sum() / weights.sum()).backward();
  return model.weight.grad().reshape({-1});
}

at::Tensor published_weights(const toy::Step& step, double threshold) {
  toy::Model model;
  const at::NoGradGuard no_grad;
  const auto m = (model(step.x, step.caption) - model(step.x, at::zeros_like(step.x))).norm(2, {1});
  return (m <= threshold).to(at::kFloat);
}

}  // namespace

TEST_CASE("law 2: the gradient of N ranks is that of one rank holding all rows, under any drops", "[law]") {
  const int64_t ranks = GENERATE(1, 2, 4), micro = GENERATE(1, 3);
  const int seed = GENERATE(range(0, 6));
  const double threshold = GENERATE(0.8, 2.0, 4.0);
  const auto step = toy::make_step(24, 50, seed, 0);
  const auto weights = published_weights(step, threshold);
  if (weights.sum().item<double>() == 0) return;
  const auto expected = expected_gradient(step, weights);
  const auto errors = toy::on_ranks(ranks, [&](auto comm) {
    auto sieve = Sieve::from_text(published(threshold), "test", comm, toy::setup(50, 24, ranks, micro));
    const auto got = train(sieve, *comm, step, micro);
    if (!at::allclose(got.gradient, expected, 1e-5, 1e-6)) throw std::runtime_error("gradient differs");
    if (got.skip.template item<double>() != 0) throw std::runtime_error("skipped");
  });
  for (const auto& error : errors) CHECK(error == "");
}

TEST_CASE("law 2: with nothing dropped, bit for bit the plain loop", "[law]") {
  const int64_t micro = GENERATE(1, 3);
  const auto step = toy::make_step(21, 50, 3, 0);
  auto comm = std::make_shared<memsieve::SoloComm>();
  auto sieve = Sieve::from_text(published(1e9), "test", comm, toy::setup(50, 21, 1, micro));
  const auto got = train(sieve, *comm, step, micro);
  toy::Model plain;
  const int64_t rows = 21 / micro;
  for (int64_t m = 0; m < micro; ++m) {
    const auto batch = toy::batch_of(plain, step, m * rows, (m + 1) * rows);
    auto loss = toy::per_sample_loss(batch).mean();
    (micro == 1 ? loss : loss / static_cast<double>(micro)).backward();
  }
  CHECK(at::equal(got.gradient.reshape({toy::kDim, toy::kDim}), plain.weight.grad()));
  CHECK(got.scale.item<float>() == 1.0F);
}

TEST_CASE("law 2: a rank that drops its whole batch changes nothing but its own share", "[law]") {
  auto step = toy::make_step(16, 50, 5, 0);
  step.caption.slice(0, 0, 8).fill_(50);  // rank 0's rows: all far beyond the threshold
  step.caption.slice(0, 8, 16).fill_(0.01);
  const auto weights = at::cat({at::zeros({8}), at::ones({8})});
  const auto expected = expected_gradient(step, weights);
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(2), "test", comm, toy::setup(50, 16, 2));
    const auto got = train(sieve, *comm, step, 1);
    if (!at::allclose(got.gradient, expected, 1e-5, 1e-6)) throw std::runtime_error("gradient differs");
  });
  for (const auto& error : errors) CHECK(error == "");
}

namespace {

/// A step of `ranks` ranks whose micro-batch m has sizes[m][rank] rows; the weights and the gradient of all ranks.
std::pair<at::Tensor, at::Tensor> train_parts(const std::string& yaml, const toy::Step& step,
                                              const std::vector<std::vector<int64_t>>& sizes, int64_t rows) {
  const auto ranks = static_cast<int64_t>(sizes[0].size()), micro = static_cast<int64_t>(sizes.size());
  std::vector<at::Tensor> weights(static_cast<size_t>(ranks * micro));
  at::Tensor gradient;
  const auto errors = toy::on_ranks(ranks, [&](auto comm) {
    auto sieve = Sieve::from_text(yaml, "test", comm, toy::setup(50, rows * ranks * micro, ranks, micro));
    toy::Model model;
    int64_t from = 0, part = 0;
    for (const auto& of_ranks : sizes) {
      for (int64_t rank = 0; rank < ranks; ++rank, ++part) {
        const int64_t to = from + of_ranks[static_cast<size_t>(rank)];
        if (rank == comm->rank()) {
          const auto batch = toy::batch_of(model, step, from, to);
          const auto plan = sieve.inspect(batch, {0, 0});
          plan.loss(toy::per_sample_loss(batch)).backward();
          weights[static_cast<size_t>(part)] = plan.weight();
        }
        from = to;
      }
    }
    const auto end = sieve.end_step({0, 0});
    const auto mean = comm->all_gather(model.weight.grad().reshape({-1}).contiguous()).mean(0);
    if (comm->rank() == 0) gradient = mean / end.grad_scale;
  });
  for (const auto& error : errors) CHECK(error == "");
  return {at::cat(weights), gradient};
}

}  // namespace

TEST_CASE("law 2: down-weighting, a cap on drops, short and unequal batches", "[law]") {
  const std::string action = GENERATE("{kind: downweight, power: 2, floor: 0.1}", "{kind: drop, max_fraction: 0.25}");
  const auto sizes =
      GENERATE(std::vector<std::vector<int64_t>>{{8, 8}, {8, 8}}, std::vector<std::vector<int64_t>>{{8, 3}, {1, 8}},
               std::vector<std::vector<int64_t>>{{5, 5, 8, 2}}, std::vector<std::vector<int64_t>>{{7}, {4}});
  CAPTURE(action, sizes);
  int64_t rows = 0;
  for (const auto& part : sizes) rows += std::accumulate(part.begin(), part.end(), int64_t{0});
  const auto step = toy::make_step(rows, 50, 9, 0);
  const auto yaml = published(0.8).substr(0, published(0.8).size() - 1) + ", action: " + action + "}";
  const auto [weights, gradient] = train_parts(yaml, step, sizes, 8);
  REQUIRE(weights.size(0) == rows);
  CHECK(at::allclose(gradient, expected_gradient(step, weights), 1e-5, 1e-6));
  const auto beyond = published_weights(step, 0.8) == 0;
  CHECK(weights.masked_select(beyond.logical_not()).eq(1).all().item<bool>());
  if (action.find("downweight") != std::string::npos) {
    CHECK(((weights > 0.1) & (weights < 1)).any().item<bool>());
    CHECK(weights.masked_select(beyond).lt(1).all().item<bool>());
  } else {
    int64_t most = 0;  // a quarter of each micro-batch
    for (const auto& part : sizes)
      for (const int64_t size : part) most += size / 4;
    const auto dropped = (weights == 0).sum().item<int64_t>();
    CHECK(dropped <= most);
    CHECK(dropped > 0);
    CHECK(dropped < beyond.sum().item<int64_t>());
  }
}

TEST_CASE("law 3: if every row of every rank is dropped, all ranks skip together", "[law]") {
  const int64_t ranks = GENERATE(1, 2, 4);
  const auto errors = toy::on_ranks(ranks, [&](auto comm) {
    auto sieve = Sieve::from_text(published(-1), "test", comm, toy::setup(50, 16, ranks));
    const auto got = train(sieve, *comm, toy::make_step(16, 50, 2, 0), 1);
    if (got.skip.template item<double>() != 1) throw std::runtime_error("not skipped");
    if (got.scale.template item<double>() != 1) throw std::runtime_error("scale must stay harmless");
    if (!sieve.take_reports().at(0).skipped) throw std::runtime_error("report does not say so");
  });
  for (const auto& error : errors) CHECK(error == "");
}

namespace {

const std::string kFull = R"(
sieve:
  filters: {magnitude: {scale: log, timestep_min: 300}, prediction_error: {}}
  standardise: {by: timestep, population: held_out, bins: 4, window: 16, min_count: 4}
  evidence: {kind: ledger, visits: 4}
  threshold: {kind: held_out, drop: 0.2, release: 0.4}
  probe: {kind: budget, fraction: 0.5}
  block_rows: 4
  held_out: {rows: 16}
)";

const std::string kGroups = R"(
sieve:
  filters: {magnitude: {scale: log}, prediction_error: {}}
  standardise: {by: timestep, population: training, bins: 4, window: 16, min_count: 4}
  evidence: {kind: ledger, visits: 4, pool: group}
  threshold: {kind: robust_z, drop: 1, release: 0.5, window: 64}
  probe: {kind: budget, fraction: 0.5}
  block_rows: 4
)";

/// Trains 30 steps of the full rule; returns every weight of every row in global order and the final state.
std::pair<at::Tensor, std::map<std::string, at::Tensor>> full_run(int64_t ranks, const std::string& yaml) {
  std::vector<at::Tensor> weights(30);
  std::map<std::string, at::Tensor> state;
  const auto errors = toy::on_ranks(ranks, [&](auto comm) {
    auto setup = toy::setup(40, 16, ranks);
    setup.held_out_size = 6;
    for (int64_t i = 0; i < 40; ++i) setup.group_id.push_back(i / 3);
    auto sieve = Sieve::from_text(yaml, "test", comm, setup);
    const toy::Model model;
    for (int64_t s = 0; s < 30; ++s) {
      const toy::Step step = toy::make_step(16, 40, 7, s), held = toy::make_step(16, 40, 8, s);
      const int64_t rows = 16 / ranks;
      const auto batch = toy::batch_of(model, step, comm->rank() * rows, (comm->rank() + 1) * rows);
      const auto plan = sieve.inspect(batch, {s, 0});
      const auto visits = sieve.held_out_visits(s);
      if (!visits.empty()) {
        auto seen = toy::batch_of(model, held, visits.front().place, visits.back().place + 1);
        for (size_t i = 0; i < visits.size(); ++i) {
          seen.sample_id[static_cast<int64_t>(i)] = visits[i].id;
          seen.timestep[static_cast<int64_t>(i)] = static_cast<int64_t>(visits[i].timestep_fraction * 1000);
        }
        sieve.observe(seen, {s, 0});
      }
      sieve.end_step({s, 0});
      const auto all = comm->all_gather(plan.weight());
      if (comm->rank() == 0) weights[s] = all.reshape({-1});
    }
    if (comm->rank() == 0) state = sieve.state();
  });
  for (const auto& error : errors) CHECK(error == "");
  return {at::cat(weights), state};
}

}  // namespace

TEST_CASE("laws 4 and 8: decisions and statistics are the same on 1, 2 and 4 ranks", "[law]") {
  const std::string yaml = GENERATE(kFull, kGroups);
  const auto [weights, state] = full_run(1, yaml);
  CHECK(weights.sum().item<double>() < 480);  // the rule does drop something
  CHECK(weights.sum().item<double>() > 100);
  for (const int64_t ranks : {2, 4}) {
    const auto [other, other_state] = full_run(ranks, yaml);
    CHECK(at::equal(weights, other));
    for (const auto& [name, tensor] : state) {
      INFO(name);
      CHECK(at::equal(tensor.nan_to_num(-7), other_state.at(name).nan_to_num(-7)));
    }
  }
}

TEST_CASE("law 5: a step never asks the device for a value", "[law]") {
  auto setup = toy::setup(40, 16);
  setup.held_out_size = 6;
  auto sieve = Sieve::from_text(kFull, "test", std::make_shared<memsieve::SoloComm>(), setup);
  const toy::Model model;
  const auto step = toy::make_step(16, 40, 7, 0);
  const auto batch = toy::batch_of(model, step, 0, 16);
  const auto held = toy::batch_of(model, toy::make_step(16, 6, 8, 0), 0, 16);
  const auto used = toy::operators_of([&] {
    sieve.inspect(batch, {0, 0}).loss(toy::per_sample_loss(batch));
    sieve.observe(held, {0, 0});
    sieve.end_step({0, 0});
  });
  CHECK(used.count("aten::sort") + used.count("aten::nanmedian") > 0);  // the observer works
  CHECK(toy::waiting_among(used) == "");
  CHECK(used.count("aten::equal") == 0);
}

TEST_CASE("ranks that are configured differently are refused on all ranks", "[law]") {
  const auto errors = toy::on_ranks(3, [&](auto comm) {
    auto setup = toy::setup(comm->rank() == 1 ? 51 : 50, 15, 3);
    Sieve::from_text(published(2), "test", comm, setup);
  });
  for (const auto& error : errors) CHECK_THAT(error, Catch::Contains("rank 1 differs from rank 0 in the loop's setup"));
}

TEST_CASE("a rank whose configuration is bad does not leave the others waiting", "[law]") {
  const auto errors = toy::on_ranks(3, [&](auto comm) {
    Sieve::from_text(comm->rank() == 1 ? "sieve: {filters: {magnitud: {}}}" : published(2), "run.yaml", comm,
                     toy::setup(50, 15, 3));
  });
  CHECK(errors[1] == "run.yaml:1: sieve.filters.magnitud: unknown key; did you mean 'magnitude'?");
  for (const int rank : {0, 2}) CHECK(errors[rank] == "rank 1: " + errors[1]);
}

TEST_CASE("configs/wen2024.yaml is the published rule: keep a row if its raw L2 magnitude is at most 2", "[law]") {
  const auto step = toy::make_step(32, 50, 4, 0);
  const auto expected = published_weights(step, 2);
  REQUIRE((expected.sum().item<double>() > 0 && expected.sum().item<double>() < 32));
  auto sieve = Sieve::from_yaml(MEMSIEVE_SOURCE_DIR "/configs/wen2024.yaml", std::make_shared<memsieve::SoloComm>(),
                                toy::setup(50, 32));
  const toy::Model model;
  CHECK(at::equal(sieve.inspect(toy::batch_of(model, step, 0, 32), {}).weight(), expected));
}

TEST_CASE("configs/default.yaml is a whole configuration", "[law]") {
  auto setup = toy::setup(50, 32);
  setup.held_out_size = 16;
  CHECK_NOTHROW(
      Sieve::from_yaml(MEMSIEVE_SOURCE_DIR "/configs/default.yaml", std::make_shared<memsieve::SoloComm>(), setup));
}

}  // namespace of_test_laws
