// The design's laws, on ranks that are threads. tests/collective repeats the distributed ones on processes.
#include <ATen/core/grad_mode.h>
#include <ATen/record_function.h>

#include <atomic>
#include <mutex>
#include <set>

#include <support/thread_ranks.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

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

std::string published(double threshold) {
  return "sieve: {filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: "
         "{kind: fixed, drop: " +
         std::to_string(threshold) + "}}";
}

}  // namespace

TEST_CASE("law 1: one collective of one size per step, whatever the data", "[law]") {
  for (const double threshold : {-1.0, 1.0, 1e9}) {
    std::mutex mutex;
    std::set<std::vector<int64_t>> seen;
    const auto errors = toy::on_ranks(2, [&](auto comm) {
      auto counting = std::make_shared<Counting>(comm);
      auto sieve = Sieve::from_text(published(threshold), "test", counting, toy::setup(50, 16, 2));
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

/// Trains 30 steps of the full rule; returns every weight of every row in global order and the final state.
std::pair<at::Tensor, std::map<std::string, at::Tensor>> full_run(int64_t ranks) {
  std::vector<at::Tensor> weights(30);
  std::map<std::string, at::Tensor> state;
  const auto errors = toy::on_ranks(ranks, [&](auto comm) {
    auto setup = toy::setup(40, 16, ranks);
    setup.held_out_size = 6;
    auto sieve = Sieve::from_text(kFull, "test", comm, setup);
    const toy::Model model;
    for (int64_t s = 0; s < 30; ++s) {
      const toy::Step step = toy::make_step(16, 40, 7, s), held = toy::make_step(16, 40, 8, s);
      const int64_t rows = 16 / ranks;
      const auto batch = toy::batch_of(model, step, comm->rank() * rows, (comm->rank() + 1) * rows);
      const auto plan = sieve.inspect(batch, {s, 0});
      const auto visits = sieve.held_out_visits(s);
      auto seen = toy::batch_of(model, held, visits.front().place, visits.back().place + 1);
      for (size_t i = 0; i < visits.size(); ++i) {
        seen.sample_id[static_cast<int64_t>(i)] = visits[i].id;
        seen.timestep[static_cast<int64_t>(i)] = static_cast<int64_t>(visits[i].timestep_fraction * 1000);
      }
      sieve.observe(seen, {s, 0});
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
  const auto [weights, state] = full_run(1);
  CHECK(weights.sum().item<double>() < 480);  // the rule does drop something
  CHECK(weights.sum().item<double>() > 100);
  for (const int64_t ranks : {2, 4}) {
    const auto [other, other_state] = full_run(ranks);
    CHECK(at::equal(weights, other));
    for (const auto& [name, tensor] : state) {
      INFO(name);
      CHECK(at::equal(tensor.nan_to_num(-7), other_state.at(name).nan_to_num(-7)));
    }
  }
}

TEST_CASE("law 5: a step never asks the device for a value", "[law]") {
  static std::mutex mutex;
  static std::set<std::string> used;
  used.clear();
  auto setup = toy::setup(40, 16);
  setup.held_out_size = 6;
  auto sieve = Sieve::from_text(kFull, "test", std::make_shared<memsieve::SoloComm>(), setup);
  const toy::Model model;
  const auto step = toy::make_step(16, 40, 7, 0);
  const auto batch = toy::batch_of(model, step, 0, 16);
  const auto held = toy::batch_of(model, toy::make_step(16, 6, 8, 0), 0, 16);
  const auto handle = at::addThreadLocalCallback(
      at::RecordFunctionCallback([](const at::RecordFunction& f) -> std::unique_ptr<at::ObserverContext> {
        const std::lock_guard lock(mutex);
        used.insert(f.name());
        return nullptr;
      }).scopes({at::RecordScope::FUNCTION}));
  sieve.inspect(batch, {0, 0}).loss(toy::per_sample_loss(batch));
  sieve.observe(held, {0, 0});
  sieve.end_step({0, 0});
  at::removeCallback(handle);
  CHECK(used.count("aten::sort") + used.count("aten::nanmedian") > 0);  // the observer works
  for (const char* name : {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero",
                           "aten::equal", "aten::masked_select", "aten::unique_dim", "aten::_unique2"}) {
    INFO(name);
    CHECK(used.count(name) == 0);
  }
}

namespace {

struct Thrower final : memsieve::Filter {
  explicit Thrower(bool throws) : throws(throws) {}
  memsieve::Needs needs() const override { return {}; }
  at::Tensor score(const memsieve::SignalView& view) const override {
    if (throws) throw std::runtime_error("no luck today");
    return view.prediction_error;
  }
  bool throws;
};

}  // namespace

TEST_CASE("law 6: a filter's error on one rank is thrown on all, naming the guilty one", "[law]") {
  const auto errors = toy::on_ranks(4, [&](auto comm) {
    auto setup = toy::setup(50, 16, 4);
    const bool guilty = comm->rank() == 2;
    setup.filters.add(
        {"thrower", "", {}, [guilty](const memsieve::Settings&) { return std::make_unique<Thrower>(guilty); }});
    auto sieve = Sieve::from_text(
        "sieve: {filters: {thrower: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: "
        "{kind: fixed, drop: 5}}",
        "test", comm, setup);
    train(sieve, *comm, toy::make_step(16, 50, 1, 0), 1);
  });
  for (const auto& error : errors) {
    CHECK_THAT(error, Catch::Contains("rank 2") && Catch::Contains("filter thrower: no luck today"));
  }
}

TEST_CASE("law 6: a batch that breaks the contract on one rank is an error on all", "[law]") {
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto sieve = Sieve::from_text(published(2), "test", comm, toy::setup(50, 16, 2));
    auto step = toy::make_step(16, 50, 1, 0);
    if (comm->rank() == 1) step.ids[9] = 50;
    train(sieve, *comm, step, 1);
  });
  for (const auto& error : errors) {
    CHECK_THAT(error, Catch::Contains("rank 1") && Catch::Contains("sample id 50 is out of range [0, 50)"));
  }
}

TEST_CASE("law 9: a NaN row fails all ranks with the sample's id, or is skipped and counted", "[law]") {
  const bool skip = GENERATE(false, true);
  const bool in_loss = GENERATE(false, true);
  const auto errors = toy::on_ranks(2, [&](auto comm) {
    auto setup = toy::setup(50, 16, 2);
    if (skip) setup.overrides = {"sieve.on_nonfinite=skip"};
    auto sieve = Sieve::from_text(published(1e9), "test", comm, setup);
    auto step = toy::make_step(16, 50, 1, 0);
    step.ids[11] = 33;
    if (!in_loss) step.x[11].fill_(std::numeric_limits<double>::quiet_NaN());
    toy::Model model;
    const auto batch = toy::batch_of(model, step, comm->rank() * 8, comm->rank() * 8 + 8);
    const auto plan = sieve.inspect(batch, {});
    auto loss = toy::per_sample_loss(batch);
    if (in_loss && comm->rank() == 1) loss = loss * at::where(at::arange(8) == 3, std::nan(""), 1.0);
    plan.loss(loss);
    const auto end = sieve.end_step({});
    const auto report = sieve.take_reports().at(0);
    if (end.skip.template item<double>() != 1 || !report.skipped || report.nonfinite != 1)
      throw std::runtime_error("not counted");
  });
  for (const auto& error : errors) {
    if (skip) {
      CHECK(error == "");
    } else {
      CHECK_THAT(error, Catch::Contains("sample 33") && Catch::Contains("NaN or Inf"));
    }
  }
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
