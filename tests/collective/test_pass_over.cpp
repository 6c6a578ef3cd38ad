// The trainer passes over flagged samples: on any number of ranks, when it is resumed, and whatever is flagged.
#include <fstream>
#include <diffusion/data/sampler.h>
#include <nlohmann/json.hpp>

#include <support/world.h>

namespace of_test_pass_over {

using namespace memsieve;
using namespace memsieve::trainer;
using namespace world;

namespace {

const std::string kPassOver = "sieve.action.pass_over=true;sieve.revisit.rows=4;sieve.revisit.every=2;";
/// A sieve that does not look at the data: everybody is beyond the level, or nobody.
std::string fixed_level(double level) {
  const std::string at = std::to_string(level);
  return "sieve: {filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: ledger, visits: 2, min_visits: 1}, "
         "threshold: {kind: fixed, drop: " +
         at + ", release: " + at + "}, action: {pass_over: true}}\n";
}

int64_t stream_position(const World& world, const std::string& run, int64_t step) {
  std::ifstream in(world.path(run + "/checkpoints/step-0000" + std::to_string(step) + "/state.json"));
  return nlohmann::json::parse(in).at("stream_position").get<int64_t>();
}

const std::string kQuiet = "validation.every=0;sampling.every=0;";

}  // namespace

TEST_CASE("any number of ranks passes over the same samples and trains the same") {
  const World world;
  const std::string settings =
      kQuiet + kPassOver + "adam_epsilon=0.01;sieve.probe.kind=every;sieve.block_rows=1;max_train_steps=28;";
  require_done(world.train(1, "r1", settings + "train_batch_size=8"));
  require_done(world.train(2, "r2", settings + "train_batch_size=4"));
  require_done(world.train(4, "r4", settings + "train_batch_size=2"));
  const auto one = tensors(world, "r1", 28, kFiles[0]), flags = tensors(world, "r1", 28, "sieve.safetensors");
  const int64_t passed = sum_of(metrics(world, "r1"), "passed_over");
  CHECK(passed > 20);
  CHECK(stream_position(world, "r1", 28) == 28 * 8 + passed);
  for (const std::string other : {"r2", "r4"}) {
    INFO(other);
    for (const auto& [name, tensor] : tensors(world, other, 28, kFiles[0])) {
      INFO(name);
      CHECK(at::allclose(tensor, one.at(name), 1e-3, 2e-5));
    }
    const auto state = tensors(world, other, 28, "sieve.safetensors");
    for (const char* name : {"flags", "flags_seen", "flags_step", "ledger_rows"})
      CHECK(at::equal(state.at(name), flags.at(name)));
    CHECK(sum_of(metrics(world, other), "passed_over") == passed);
  }
}

TEST_CASE("a resumed run passes over what an uninterrupted one does, however far it prepares ahead") {
  const World world;
  const std::string settings = kQuiet + kPassOver + "gradient_accumulation_steps=2;train_batch_size=2;";
  require_done(world.train(2, "whole", settings + "max_train_steps=33"));
  // In the middle of what the flags' lag holds back.
  require_done(world.train(2, "parts", settings + "max_train_steps=13;data.prefetch=0"));
  require_done(world.train(2, "parts", settings + "max_train_steps=20;data.prefetch=64;resume_from_checkpoint=latest"));
  require_done(world.train(2, "parts", settings + "max_train_steps=33;data.prefetch=1;resume_from_checkpoint=latest"));
  for (const auto& file : kFiles) {
    INFO(file);
    check_equal(tensors(world, "whole", 33, file), tensors(world, "parts", 33, file));
  }
  CHECK(metrics(world, "whole") == metrics(world, "parts"));
  CHECK(stream_position(world, "whole", 33) == stream_position(world, "parts", 33));
  CHECK(sum_of(metrics(world, "whole"), "passed_over") > 20);
}

TEST_CASE("where everybody is flagged the steps go on") {
  const World world;
  world.write_config(fixed_level(-1));
  require_done(world.train(2, "run", kQuiet + "proportion_empty_prompts=0;max_train_steps=30;train_batch_size=2"));
  const std::string told = metrics(world, "run");
  // 24 samples are all seen within 6 steps of 4: known from 6 + 7 steps on.
  CHECK(sum_of(told, "passed_over") >= (30 - 6 - 8) * 4 * diffusion::Sampler::kMostWalked);
  CHECK(sum_of(told, "rows") == 30 * 4);
}

TEST_CASE("where nobody is flagged passing over changes nothing, bit for bit") {
  const World world;
  world.write_config(fixed_level(1e9));
  const std::string settings = kQuiet + "train_batch_size=2;max_train_steps=20;";
  require_done(world.train(2, "with", settings));
  require_done(world.train(2, "without", settings + "sieve.action.pass_over=false"));
  for (size_t i = 0; i < 3; ++i)
    check_equal(tensors(world, "with", 20, kFiles[i]), tensors(world, "without", 20, kFiles[i]));
  CHECK(metrics(world, "without").find("passed_over") == std::string::npos);
  CHECK(sum_of(metrics(world, "with"), "passed_over") == 0);
}

}  // namespace of_test_pass_over
