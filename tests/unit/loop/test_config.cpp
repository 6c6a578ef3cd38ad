// Configuration: what is refused, and with which words; which settings a resumed run must keep.
#include <memsieve/builtin.h>
#include <memsieve/error.h>
#include <trainer/loop/config.h>

#include <catch2/catch.hpp>

using namespace memsieve;
using namespace memsieve::trainer;

namespace {

const std::string kGood = R"(seed: 3
data:
  train: train.h5
model:
  config: unet.json
max_train_steps: 100
lr_scheduler: linear
)";

TrainConfig read(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  return read_config_text(yaml, "run.yaml", builtin_filters(), overrides);
}

std::string refusal(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    read(yaml, overrides);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a configuration becomes plain values") {
  const TrainConfig c = read(kGood, {"learning_rate=0.25", "validation.every=0", "mixed_precision=bf16"});
  CHECK(c.seed == 3);
  CHECK(c.train_data == "train.h5");
  CHECK(c.optimizer.learning_rate == 0.25);
  CHECK(c.optimizer.lr_scheduler == "linear");
  CHECK(c.bf16);
  CHECK_FALSE(c.sieve);
}

TEST_CASE("the sieve is on if its section is there and the filter is not off") {
  const std::string with = kGood + "sieve:\n  filters:\n    magnitude: {}\n";
  CHECK(read(with).sieve);
  CHECK_FALSE(read(with, {"filter=off"}).sieve);
  CHECK(read(kGood, {"sieve.filters.magnitude.norm=rms"}).sieve);
}

TEST_CASE("contradictions are refused with the key and a remedy") {
  using Catch::Contains;
  CHECK_THAT(refusal("data: {train: a.h5}\n"), Contains("model.pretrained") && Contains("model.config"));
  CHECK_THAT(refusal("model: {config: a}\n"), Contains("data.train"));
  CHECK_THAT(refusal(kGood, {"model.pretrained=folder"}),
             Contains("run.yaml:5: model.config") && Contains("keep one"));
  CHECK_THAT(refusal(kGood, {"validation.every=10"}),
             Contains("--set validation.every=10") && Contains("data.validation"));
  CHECK_THAT(refusal(kGood, {"sampling.every=10"}), Contains("data.prompts"));
  CHECK_THAT(refusal(kGood, {"lr_warmup_steps=100"}), Contains("lr_warmup_steps") && Contains("100"));
  CHECK_THAT(refusal(kGood, {"beta_start=0.5"}), Contains("beta_start"));
  CHECK_THAT(refusal(kGood + "output_dir: ''\n"), Contains("run.yaml:8: output_dir"));
  CHECK_THAT(refusal(kGood + "lerning_rate: 1\n"),
             Contains("run.yaml:8") && Contains("did you mean 'learning_rate'?"));
}

TEST_CASE("a configuration printed in full means the same") {
  const TrainConfig c = read(kGood, {"sieve.filters.magnitude.norm=rms"});
  CHECK(read(c.settings.yaml()).settings.yaml() == c.settings.yaml());
}

TEST_CASE("a resumed run may change where it writes, not what it computes") {
  const auto meaning = [](const std::vector<std::string>& overrides) {
    return meaning_of(read(kGood, overrides).settings.yaml());
  };
  const std::string base = meaning({});
  for (const char* free :
       {"output_dir=elsewhere", "max_train_steps=7", "log_every=3", "checkpointing_steps=1", "device=cpu",
        "sampling.guidance_scale=3", "train_batch_size=2", "resume_from_checkpoint=latest"}) {
    INFO(free);
    CHECK(meaning({free}) == base);
  }
  for (const char* bound : {"seed=4", "learning_rate=0.5", "data.train=other.h5", "snr_gamma=5",
                            "use_ema=true", "sieve.filters.magnitude.norm=rms", "filter=off"}) {
    INFO(bound);
    CHECK(meaning({bound}) != base);
  }
  CHECK(first_difference(meaning({"seed=4"}), base) == "`seed: 4` / `seed: 3`");
  CHECK(first_difference(base, base).empty());
}
