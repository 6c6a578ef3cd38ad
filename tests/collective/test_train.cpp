// The trainer's own promises, each with real processes: the number of ranks does not matter, a resumed run equals an
// uninterrupted one, a signal to one rank stops all, and an error on one rank ends all.
#include <memsieve/builtin.h>
#include <memsieve/error.h>
#include <runtime/exit_codes.h>
#include <runtime/launch.h>
#include <trainer/config/train_config.h>
#include <runtime/log.h>
#include <runtime/stop.h>
#include <trainer/loop/train.h>
#include <trainer/loop/session.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include <support/world.h>

namespace of_test_train {

using namespace memsieve;
using namespace memsieve::trainer;
using namespace world;

namespace {

/// Lets this rank, if it is `rank`, get SIGTERM as soon as the run folder's metrics show that training goes on.
void signal_when_training(const std::string& folder) {
  std::thread([folder] {
    while (!fs::exists(folder + "/samples/step-000000.h5")) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    raise(SIGTERM);
  }).detach();
}

/// Steps in which some of the rows were dropped, but not all.
int64_t steps_with_some_dropped(const std::string& metrics, int64_t rows) {
  std::istringstream lines(metrics);
  int64_t count = 0;
  for (std::string line; std::getline(lines, line);) {
    const int64_t dropped = sum_of(line, "dropped");
    if (dropped > 0 && dropped < rows) ++count;
  }
  return count;
}

}  // namespace

// One rank of a run; leaves with the trainer's exit code. Arguments: FILE;a.b=c;... and `signal` for SIGTERM on rank 1.
const processes::Scenario trainer_rank("trainer rank", [] {
  auto arguments = split(processes::argument());
  const std::string file = arguments.front();
  arguments.erase(arguments.begin());
  const Launch launch = launch_from_environment();
  log_as(launch.rank, launch.world_size);
  catch_stop_signals();
  ExitCode code = kOtherError;
  std::unique_ptr<Group> group;
  try {
    if (!arguments.empty() && arguments.back() == "signal") {
      arguments.pop_back();
      if (launch.rank == 1) signal_when_training(arguments.front().substr(arguments.front().find('=') + 1));
    }
    if (!arguments.empty() && arguments.back() == "lost data") {
      arguments.pop_back();
      if (launch.rank == 1) fs::current_path(processes::shared_folder());
    }
    GroupOptions options;
    options.collective_seconds = 30;
    group = std::make_unique<Group>(launch, c10::kCPU, options);
    code = train(read_config(file, arguments), *group, false);
  } catch (const std::exception& error) {
    log_error(error.what());
    code = exit_code_of(error);
  }
  if (code != kDone) std::_Exit(code);
  group.reset();
  std::_Exit(kDone);
});

TEST_CASE("any number of ranks trains the same") {
  const World world;
  // With four rows on four ranks, a rank whose row is dropped has dropped everything.
  const auto [rows, micro] = GENERATE(std::pair(16, 1), std::pair(16, 2), std::pair(4, 1));
  for (int ranks : {1, 2, 4}) {
    // A large epsilon: where a gradient is all but 0, Adam would blow rounding errors up to whole steps.
    require_done(
        world.train(ranks, std::string("r").append(std::to_string(ranks)),
                    "validation.every=0;sampling.every=0;adam_epsilon=0.01;sieve.probe.kind=every;sieve.block_rows=1;"
                    "max_train_steps=20;gradient_accumulation_steps=" +
                        std::to_string(micro) + ";train_batch_size=" + std::to_string(rows / ranks / micro)));
  }
  const auto one = tensors(world, "r1", 20, kFiles[0]);
  const int64_t dropped = sum_of(metrics(world, "r1"), "dropped");
  CHECK(dropped > 0);
  if (rows == 4) CHECK(steps_with_some_dropped(metrics(world, "r4"), rows) > 3);
  for (const char* other : {"r2", "r4"}) {
    INFO(other);
    for (const auto& [name, tensor] : tensors(world, other, 20, kFiles[0])) {
      INFO(name);
      CHECK(at::allclose(tensor, one.at(name), 1e-3, 2e-5));
    }
    CHECK(sum_of(metrics(world, other), "dropped") == dropped);
  }
}

TEST_CASE("a resumed run equals an uninterrupted one bit for bit") {
  const World world;
  const int ranks = GENERATE(2, 4);  // from three ranks on, sums depend on the order of summation
  require_done(world.train(ranks, "whole", "train_batch_size=2"));
  require_done(world.train(ranks, "parts", "train_batch_size=2;max_train_steps=6"));
  require_done(world.train(ranks, "parts", "train_batch_size=2;resume_from_checkpoint=latest"));
  for (const auto& file : kFiles) {
    INFO(file);
    check_equal(tensors(world, "whole", 12, file), tensors(world, "parts", 12, file));
  }
  CHECK(metrics(world, "whole") == metrics(world, "parts"));
  CHECK(sum_of(metrics(world, "whole"), "dropped") > 0);
}

TEST_CASE("SIGTERM to one rank stops all after a checkpoint from which the run goes on") {
  const World world;
  require_done(world.train(2, "whole", "max_train_steps=36;validation.every=0;sampling.every=36"));
  const auto stopped = world.train(2, "parts", "max_train_steps=36;validation.every=0;sampling.every=36;signal");
  INFO(stopped.outputs[0]);
  REQUIRE(stopped.exit_codes == std::vector<int>{143, 143});
  CHECK_THAT(stopped.outputs[0], Catch::Contains("--resume-from latest"));
  const auto rest =
      world.train(2, "parts", "max_train_steps=36;validation.every=0;sampling.every=36;resume_from_checkpoint=latest");
  INFO(rest.outputs[0]);
  REQUIRE(rest.exit_codes == std::vector<int>{0, 0});
  const std::string last = "/checkpoints/step-000036/" + kFiles[0];
  check_equal(load_safetensors(world.path("whole" + last)), load_safetensors(world.path("parts" + last)));
}

TEST_CASE("a sieve that drops nothing equals no sieve bit for bit") {
  const World world;
  world.write_config(
      "sieve: {filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, "
      "drop: 1e9}}\n");
  const int ranks = GENERATE(1, 2);
  require_done(world.train(ranks, "with", "gradient_accumulation_steps=2;train_batch_size=2"));
  REQUIRE(world.train(ranks, "without", "gradient_accumulation_steps=2;train_batch_size=2;filter=off").exit_codes ==
          std::vector<int>(ranks, 0));
  for (size_t i = 0; i < 3; ++i)
    check_equal(tensors(world, "with", 12, kFiles[i]), tensors(world, "without", 12, kFiles[i]));
  CHECK(sum_of(metrics(world, "with"), "probed") > 0);
}

TEST_CASE("when every row is dropped nothing changes") {
  const World world;
  world.write_config(
      "sieve: {filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: {kind: fixed, "
      "drop: -1}}\n");
  const std::string captioned = "proportion_empty_prompts=0;lr_scheduler=linear;";
  require_done(world.train(2, "dropped", captioned + "max_train_steps=3"));
  require_done(world.train(2, "shorter", captioned + "max_train_steps=2"));
  for (size_t i = 0; i < 3; ++i)
    check_equal(tensors(world, "dropped", 3, kFiles[i]), tensors(world, "shorter", 2, kFiles[i]));
  CHECK(tensors(world, "dropped", 3, kFiles[2]).at("updates").item<float>() == 0);
}

TEST_CASE("a file that only one rank lacks ends all ranks at once") {
  const World world;
  fs::current_path(world.path(""));
  const auto result = world.train(2, "run", "data.train=train.h5;lost data");
  fs::current_path("/");
  CHECK(result.exit_codes == std::vector<int>{kPeerFailure, kDataFailure});
  CHECK_THAT(result.outputs[0], Catch::Contains("rank 1 failed") && Catch::Contains("train.h5"));
  CHECK_FALSE(fs::exists(world.path("run")));
}

TEST_CASE("gradients that overflow end the run with an exit code of their own") {
  const World world;
  testing::write_latents(world.path("huge.h5"), 24).replace("/latents", at::full({24, 12, 4, 4}, 1e25, at::kFloat));
  const auto result = world.train(
      2, "run",
      "filter=off;data.train=" + world.path("huge.h5") +
          ";data.held_out=;data.validation=;data.prompts=;validation.every=0;sampling.every=0;max_nonfinite_steps=3");
  INFO(result.outputs[0]);
  CHECK(result.exit_codes == std::vector<int>{kDiverged, kDiverged});
  CHECK_THAT(result.outputs[0], Catch::Contains("3 steps in a row") && Catch::Contains("learning_rate"));
}

// What one rank does when its rows cannot be read in the middle of the run.
const processes::Scenario rank_with_a_broken_row("trainer rank with a broken row", [] {
  const auto arguments = split(processes::argument());
  Group group(launch_from_environment(), c10::kCPU, {});
  const TrainConfig config = read_config(arguments[0], {arguments[1]});
  Session session(config, group, /*dry=*/true);
  if (group.rank() == 1)
    session.data().training.emplace(Dataset::open(arguments[2], {.cache_bytes = 0}), session.data().schedule,
                                    c10::kCPU);
  TrainStep step(session.step_options(), session.step_parts());
  StepNumbers numbers;
  for (int64_t i = 0; i < 6 && numbers.failed == 0; ++i) {
    const at::Tensor values = step.run(i);
    numbers = step_numbers({values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()});
  }
  REQUIRE(numbers.failed == 1);
  REQUIRE((step.failure() != nullptr) == (group.rank() == 1));
});

TEST_CASE("a row that one rank cannot read is known to all after the step") {
  const World world;
  {
    auto broken = testing::write_latents(world.path("broken.h5"), 24, at::kFloat);
    broken.replace("/latents", at::full({24, 12, 4, 4}, std::numeric_limits<float>::quiet_NaN()));
  }
  const auto result = processes::run("trainer rank with a broken row", 2,
                                     world.path("run.yaml") + ";filter=off;" + world.path("broken.h5"), 60);
  INFO(result.outputs[0] << result.outputs[1]);
  CHECK(result.exit_codes == std::vector<int>{0, 0});
}

}  // namespace of_test_train
