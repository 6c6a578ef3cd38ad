// Configuration: what is refused, and with which words; which settings a resumed run must keep.
#include <diffusion/models/families.h>
#include <memsieve/builtin.h>
#include <memsieve/error.h>
#include <trainer/config/train_config.h>

#include <support/files.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

namespace of_test_config {

namespace fs = std::filesystem;
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
  CHECK(c.autocast == at::kBFloat16);
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
  CHECK_THAT(refusal(kGood, {"model.pretrained=folder"}), Contains("run.yaml:5: model.config") && Contains("keep one"));
  CHECK_THAT(refusal(kGood, {"validation.every=10"}),
             Contains("--set validation.every=10") && Contains("data.validation"));
  CHECK_THAT(refusal(kGood, {"sampling.every=10"}), Contains("data.prompts"));
  CHECK_THAT(refusal(kGood, {"lr_warmup_steps=100"}), Contains("lr_warmup_steps") && Contains("100"));
  CHECK_THAT(refusal(kGood, {"beta_start=0.5"}), Contains("beta_start"));
  CHECK_THAT(refusal(kGood, {"rescale_betas_zero_snr=true"}),
             Contains("--set rescale_betas_zero_snr=true") && Contains("v_prediction"));
  CHECK_THAT(refusal(kGood, {"sampling.every=5", "data.prompts=p.h5", "sampling.num_inference_steps=1000"}),
             Contains("sampling.num_inference_steps") && Contains("fewer"));
  CHECK_THAT(refusal(kGood + "output_dir: ''\n"), Contains("run.yaml:8: output_dir"));
  CHECK_THAT(refusal(kGood + "lerning_rate: 1\n"), Contains("run.yaml:8") && Contains("did you mean 'learning_rate'?"));
}

namespace {

/// A pipeline's folder with nothing in it but what the configuration looks at.
class Pipeline {
 public:
  explicit Pipeline(const std::string& scheduler) {
    for (const auto* part : {"unet", "scheduler"}) fs::create_directories(folder_.file(part));
    testing::write_file(folder_.file("unet/config.json"), "{}");
    testing::write_file(folder_.file("scheduler/scheduler_config.json"), scheduler);
  }
  const std::string& path() const { return folder_.path(); }

 private:
  testing::TemporaryFolder folder_;
};

const std::string kNoModel = "data: {train: train.h5}\n";

}  // namespace

TEST_CASE("a pipeline's scheduler gives the defaults, and the YAML overrides them") {
  const Pipeline pipeline(
      R"({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "beta_schedule": "scaled_linear",
          "beta_end": 0.012, "rescale_betas_zero_snr": true, "timestep_spacing": "trailing", "clip_sample": true})");
  for (const std::string& pretrained : {pipeline.path(), pipeline.path() + "/unet", pipeline.path() + "/unet/"}) {
    INFO(pretrained);
    const TrainConfig c = read(kNoModel, {"model.pretrained=" + pretrained});
    CHECK(c.diffusion.schedule.prediction_type == "v_prediction");
    CHECK(c.diffusion.schedule.beta_start == 0.0001);  // diffusers' default, as the file has none
    CHECK(c.diffusion.schedule.beta_end == 0.012);
    CHECK(c.diffusion.schedule.rescale_betas_zero_snr);
    CHECK(c.diffusion.draw.timestep_spacing == "trailing");
    CHECK(c.diffusion.draw.clip_sample);
    CHECK(c.notes.empty());
    CHECK(read(c.settings.yaml()).settings.yaml() == c.settings.yaml());
  }
  CHECK(read(kNoModel, {"model.pretrained=" + pipeline.path(), "sampling.every=1", "data.prompts=p.h5"}).notes.empty());
  const TrainConfig leading = read(kNoModel, {"model.pretrained=" + pipeline.path(), "sampling.every=1",
                                              "data.prompts=p.h5", "sampling.timestep_spacing=leading"});
  REQUIRE(leading.notes.size() == 1);
  CHECK_THAT(leading.notes[0], Catch::Contains("timestep_spacing") && Catch::Contains("trailing"));
  const TrainConfig other =
      read(kNoModel + "beta_end: 0.02\n",
           {"model.pretrained=" + pipeline.path(), "prediction_type=sample", "rescale_betas_zero_snr=true"});
  CHECK(other.diffusion.schedule.prediction_type == "sample");
  REQUIRE(other.notes.size() == 2);
  CHECK_THAT(other.notes[0], Catch::Contains("prediction_type: is sample") &&
                                 Catch::Contains("scheduler_config.json says v_prediction"));
  CHECK_THAT(other.notes[1], Catch::Contains("run.yaml:2: beta_end: is 0.02"));
  const TrainConfig without = read(kNoModel, {"model.pretrained=" + pipeline.path(), "model.scheduler=none"});
  CHECK(without.diffusion.schedule.prediction_type == "epsilon");
  CHECK_FALSE(without.diffusion.draw.clip_sample);
  // beside a model.config
  const TrainConfig named = read(kGood, {"model.scheduler=" + pipeline.path() + "/scheduler"});
  CHECK(named.diffusion.schedule.prediction_type == "v_prediction");
  CHECK(denoiser_folder(pipeline.path()) == pipeline.path() + "/unet");
  CHECK(denoiser_folder(pipeline.path() + "/unet") == pipeline.path() + "/unet");
  // The file's mistakes are named with the file, the configuration's with the key.
  CHECK_THAT(refusal(kNoModel, {"model.pretrained=" + pipeline.path(), "prediction_type=epsilon"}),
             Catch::Contains("prediction_type") && Catch::Contains("pure noise"));
  CHECK_THAT(refusal(kNoModel, {"model.scheduler=nowhere.json"}), Catch::Contains("nowhere.json"));
}

TEST_CASE("a pipeline's scheduler is found from within its unet and through a link") {
  const Pipeline pipeline(R"({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})");
  const auto trains_v = [](const std::string& pretrained) {
    const TrainConfig c = read(kNoModel, {"model.pretrained=" + pretrained});
    return c.diffusion.schedule.prediction_type == "v_prediction" && c.notes.empty();
  };
  CHECK(trains_v(pipeline.path() + "/unet/."));
  fs::create_directories(pipeline.path() + "/elsewhere");
  fs::create_symlink(pipeline.path() + "/unet", pipeline.path() + "/elsewhere/link");
  CHECK(trains_v(pipeline.path() + "/elsewhere/link"));
  CHECK(trains_v(pipeline.path() + "/elsewhere/link/"));
  const fs::path before = fs::current_path();
  fs::current_path(pipeline.path() + "/unet");
  CHECK(trains_v("."));
  fs::current_path(pipeline.path());
  CHECK(trains_v("."));
  CHECK(trains_v("unet"));
  fs::current_path(before);
}

TEST_CASE("a pretrained model of which nothing says what it predicts is told") {
  const Pipeline pipeline("{}");
  fs::remove_all(pipeline.path() + "/scheduler");
  const std::string pretrained = "model.pretrained=" + pipeline.path();
  const TrainConfig c = read(kNoModel, {pretrained});
  REQUIRE(c.notes.size() == 1);
  CHECK_THAT(c.notes[0], Catch::Contains("model.pretrained") && Catch::Contains("prediction_type epsilon") &&
                             Catch::Contains("model.scheduler"));
  CHECK(read(kNoModel, {pretrained, "prediction_type=epsilon"}).notes.empty());
  CHECK(read(kNoModel, {pretrained, "model.scheduler=none"}).notes.empty());
  CHECK(read(kGood).notes.empty());
}

TEST_CASE("a configuration printed in full means the same") {
  const TrainConfig c = read(kGood, {"sieve.filters.magnitude.norm=rms"});
  CHECK(read(c.settings.yaml()).settings.yaml() == c.settings.yaml());
}

TEST_CASE("a resumed run may change where it writes, not what it computes") {
  const std::string saved = read(kGood).settings.yaml(Keys::binding);
  const auto difference = [&](const std::string& override_) {
    return read(kGood, {override_}).settings.difference_from(saved, "state.json");
  };
  CHECK_FALSE(read(kGood).settings.difference_from(saved, "state.json"));
  CHECK_FALSE(read(kGood).settings.difference_from(read(kGood).settings.yaml(), "config.yaml"));
  for (const char* free : {"output_dir=elsewhere",
                           "max_train_steps=7",
                           "log_every=3",
                           "checkpointing_steps=1",
                           "device=cpu",
                           "sampling.guidance_scale=3",
                           "train_batch_size=2",
                           "resume_from_checkpoint=latest",
                           "data.train=moved.h5",
                           "data.held_out=moved.h5",
                           "data.prompts=p.h5",
                           "data.validation=v.h5",
                           "data.prefetch=0",
                           "data.cache_mb=1",
                           "gradient_checkpointing=true",
                           "gradient_accumulation_steps=2",
                           "checkpoints_total_limit=1",
                           "tensorboard=false",
                           "max_nonfinite_steps=2",
                           "collective_seconds=5",
                           "validation.draws=2",
                           "model.scheduler=none"}) {
    INFO(free);
    CHECK_FALSE(difference(free));
  }
  for (const char* bound :
       {"seed=4", "learning_rate=0.5", "data.random_flip=true", "snr_gamma=5", "use_ema=true", "filter=off",
        "sieve.filters.magnitude.norm=rms", "lora.rank=2", "bucket_mb=3", "mixed_precision=bf16"}) {
    INFO(bound);
    CHECK(difference(bound));
  }
  CHECK(difference("seed=4")->line() == "`seed: 4` / `seed: 3`");
  CHECK(difference("sieve.filters.magnitude.norm=rms")->line() == "`sieve: (given)` / `sieve: (not given)`");
}

TEST_CASE("of the adapters only where they start from may change") {
  const std::vector<std::string> lora = {"lora.rank=2"};
  const std::string saved = read(kGood, lora).settings.yaml(Keys::binding);
  CHECK_FALSE(read(kGood, {"lora.rank=2", "lora.pretrained=x.safetensors"}).settings.difference_from(saved, "then"));
  CHECK(read(kGood, {"lora.rank=4"}).settings.difference_from(saved, "then")->line() ==
        "`lora.rank: 4` / `lora.rank: 2`");
}

TEST_CASE("what is to be forgotten is named, and is neither trained on nor held out") {
  CHECK_FALSE(read(kGood).forget);
  const TrainConfig c = read(kGood, {"forget.data=forget.h5"});
  REQUIRE(c.forget);
  CHECK(c.forget->data == "forget.h5");
  CHECK(c.forget->share == 0.1);
  CHECK_THAT(refusal(kGood, {"forget.share=0.2"}), Catch::Contains("forget.data") && Catch::Contains("is missing"));
  CHECK_THAT(refusal(kGood, {"forget.data=train.h5"}), Catch::Contains("forget.data") && Catch::Contains("data.train"));
  CHECK_THAT(refusal(kGood, {"forget.data=h.h5", "data.held_out=h.h5"}),
             Catch::Contains("forget.data") && Catch::Contains("data.held_out"));
  CHECK_THAT(refusal(kGood, {"forget.data=f.h5", "forget.share=-1"}), Catch::Contains("forget.share"));
  const std::string saved = c.settings.yaml(Keys::binding);
  CHECK_FALSE(read(kGood, {"forget.data=moved.h5"}).settings.difference_from(saved, "then"));
  CHECK(read(kGood, {"forget.data=forget.h5", "forget.share=0.2"}).settings.difference_from(saved, "then"));
  CHECK(read(kGood).settings.difference_from(saved, "then"));
}

TEST_CASE("rank 0's configuration is compared key by key, what a resumed run may change included") {
  const std::string first = read(kGood).settings.yaml();
  CHECK_FALSE(read(kGood).settings.difference_from(first, "rank 0", Keys::all));
  CHECK(read(kGood, {"log_every=3"}).settings.difference_from(first, "rank 0", Keys::all)->path == "log_every");
}

}  // namespace of_test_config
