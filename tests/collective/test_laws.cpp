// The distributed laws on real processes over Gloo, with the gradient reducer that the trainer uses. A Scenario
// is what each rank runs; the test cases start it.
#include <runtime/group.h>
#include <runtime/launch.h>
#include <runtime/reducer.h>
#include <diffusion/io/safetensors.h>

#include <support/processes.h>
#include <support/toy.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_laws {

using memsieve::Sieve;
using namespace memsieve::runtime;

namespace {

constexpr int64_t kRows = 24, kSteps = 6, kMicro = 2;

const std::string kYaml =
    "sieve: {filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, "
    "drop: 2}}";

/// Captions that make chosen ranks' rows (or all rows) fall beyond the threshold.
toy::Step step_for(const std::string& kind, int64_t number) {
  auto step = toy::make_step(kRows, 50, 11, number);
  if (kind == "all_dropped" && number == 2) step.caption.fill_(50);
  // the first quarter of each micro-batch: all of rank 0's rows on 4 ranks, half of them on 2
  if (kind == "one_rank") {
    for (int64_t m = 0; m < kMicro; ++m)
      step.caption.slice(0, m * kRows / kMicro, m * kRows / kMicro + kRows / kMicro / 2).fill_(50);
  }
  if (kind == "nan" && number == 3) step.x[5].fill_(std::numeric_limits<double>::quiet_NaN());
  return step;
}

/// Plain SGD of a few steps under the sieve; returns the weights after each step.
std::vector<at::Tensor> train(Group& group, const std::string& kind) {
  auto setup = toy::setup(50, kRows, group.world_size(), kMicro);
  if (kind == "nan") setup.overrides = {"sieve.on_nonfinite=fail"};
  auto sieve = Sieve::from_text(kYaml, "test", group.communicator(), setup);
  toy::Model model;
  GradientReducer reducer({model.weight}, group);
  std::vector<at::Tensor> history;
  for (int64_t number = 0; number < kSteps; ++number) {
    const auto step = step_for(kind, number);
    const int64_t rows = kRows / kMicro / group.world_size();
    for (int64_t m = 0; m < kMicro; ++m) {
      const int64_t from = (m * group.world_size() + group.rank()) * rows;
      const auto batch = toy::batch_of(model, step, from, from + rows);
      const auto loss = sieve.inspect(batch, {number, 0}).loss(toy::per_sample_loss(batch));
      reducer.prepare(loss, m + 1 == kMicro);
      loss.backward();
    }
    const auto end = sieve.end_step({number, 0});
    at::Tensor update = 0.1 * model.weight.grad() / end.grad_scale * (1 - end.skip);
    model.weight.data().sub_(update);
    model.weight.mutable_grad().zero_();
    history.push_back(model.weight.detach().clone());
  }
  return history;
}

/// The same by hand, on one rank that holds all rows, without any sieve.
std::vector<at::Tensor> by_hand(const std::string& kind) {
  toy::Model model;
  std::vector<at::Tensor> history;
  for (int64_t number = 0; number < kSteps; ++number) {
    const auto step = step_for(kind, number);
    const auto batch = toy::batch_of(model, step, 0, kRows);
    const auto m = (batch.prediction - batch.null_prediction(at::arange(kRows))).detach().norm(2, {1});
    const auto weight = (m.to(at::kFloat) <= 2).to(at::kDouble);
    if (weight.sum().item<double>() > 0) {
      ((weight * toy::per_sample_loss(batch)).sum() / weight.sum()).backward();
      model.weight.data().sub_(0.1 * model.weight.grad());
      model.weight.mutable_grad().zero_();
    }
    history.push_back(model.weight.detach().clone());
  }
  return history;
}

}  // namespace

const processes::Scenario rank_train("rank: train", [] {
  const auto launch = launch_from_environment();
  GroupOptions options;
  options.rendezvous_seconds = options.collective_seconds = 30;
  Group group(launch, at::kCPU, options);
  const auto history = train(group, processes::argument());
  const auto expected = by_hand(processes::argument());
  for (int64_t i = 0; i < kSteps; ++i) {
    INFO("step " << i);
    REQUIRE(at::allclose(history[i], expected[i], 1e-6, 1e-7));
  }
  if (processes::argument() == "all_dropped") REQUIRE(at::equal(history[2], history[1]));
  group.barrier();
});

TEST_CASE("N processes train as one rank holding all rows, whoever drops what", "[collective]") {
  const int ranks = GENERATE(1, 2, 4);
  const std::string kind = GENERATE("random", "one_rank", "all_dropped");
  CAPTURE(ranks, kind);
  const auto result = processes::run("rank: train", ranks, kind);
  for (int rank = 0; rank < ranks; ++rank) {
    INFO(result.outputs[rank]);
    CHECK(result.exit_codes[rank] == 0);
  }
}

const processes::Scenario rank_broken("rank: broken", [] {
  const auto launch = launch_from_environment();
  GroupOptions options;
  options.rendezvous_seconds = options.collective_seconds = 30;
  Group group(launch, at::kCPU, options);
  std::string said = "nothing";
  try {
    train(group, "nan");
  } catch (const memsieve::NonFiniteError& error) {
    said = error.what();
  }
  REQUIRE_THAT(said, Catch::StartsWith("step 3: sample ") && Catch::Contains("NaN or Inf"));
});

TEST_CASE("a NaN row stops all processes at the same step, naming the sample", "[collective]") {
  const int ranks = GENERATE(2, 4);
  const auto result = processes::run("rank: broken", ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    INFO(result.outputs[rank]);
    CHECK(result.exit_codes[rank] == 0);
  }
}

}  // namespace of_test_laws
