// Families of models behind one interface, and the model that is made of one: device, autocast, adapters.
#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/models/families.h>
#include <diffusion/models/model.h>
#include <diffusion/models/unet/unet_family.h>

#include <filesystem>

#include <support/files.h>
#include <support/message_of.h>

namespace of_test_model {

using namespace memsieve;
using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;

namespace {

const char* const kSmall = R"({"_class_name": "UNet2DConditionModel", "in_channels": 3, "out_channels": 3,
  "block_out_channels": [8, 16], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 2,
  "cross_attention_dim": 6, "norm_num_groups": 4})";

std::unique_ptr<Denoiser> small(uint64_t seed = 1) {
  at::manual_seed(seed);
  return unet_denoiser(UNet2DConditionModel(parse_unet_config(kSmall, "small")));
}

/// Answers with the timesteps it is given, in half precision if autocast would.
class Echo : public Denoiser {
 public:
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning&) override {
    return (at::zeros_like(sample) + timestep.view({-1, 1, 1, 1})).to(at::kHalf);
  }
  torch::nn::Module& module() override { return module_; }
  std::string component() const override { return "echo"; }
  void set_gradient_checkpointing(bool) override {}
  void check_takes(const RowShape&, const std::string&) const override {}
  void save(const std::string&) override {}

 private:
  torch::nn::Module module_{"echo"};
};

at::Tensor answer(Model& model) {
  at::manual_seed(9);
  const at::Tensor sample = at::randn({2, 3, 8, 8}), text = at::randn({2, 4, 6});
  return model.predict(sample, at::tensor({3, 700}, at::kLong), text);
}

}  // namespace

TEST_CASE("a folder's config.json says which family its model is of") {
  const TemporaryFolder folder;
  write_file(folder.file("config.json"), kSmall);
  CHECK(family_of(folder.file("config.json")).class_name == "UNet2DConditionModel");
  write_file(folder.file("config.json"), R"({"in_channels": 3})");
  CHECK(family_of(folder.file("config.json")).component == "unet");  // diffusers' older files do not say
  write_file(folder.file("config.json"), R"({"_class_name": "FluxTransformer2DModel"})");
  CHECK_THAT(message_of<ConfigError>([&] { family_of(folder.file("config.json")); }),
             Contains("config.json") && Contains("_class_name") && Contains("FluxTransformer2DModel") &&
                 Contains("UNet2DConditionModel"));
  write_file(folder.file("config.json"), R"({"_class_name": 3})");
  CHECK_THAT(message_of<ConfigError>([&] { make_denoiser(folder.file("config.json")); }), Contains("_class_name"));
}

TEST_CASE("every family is found by its class, and its folder in a pipeline") {
  for (const ModelFamily& family : model_families()) {
    INFO(family.class_name);
    const TemporaryFolder folder;
    std::filesystem::create_directories(folder.file(family.component));
    write_file(folder.file(family.component + "/config.json"), R"({"_class_name": ")" + family.class_name + "\"}");
    CHECK(denoiser_folder(folder.file("")) == folder.file(family.component));
    CHECK(denoiser_folder(folder.file(family.component)) == folder.file(family.component));
    CHECK(family_of(folder.file(family.component + "/config.json")).class_name == family.class_name);
  }
  const TemporaryFolder nothing;
  CHECK(denoiser_folder(nothing.file("")) == nothing.file(""));
}

TEST_CASE("a denoiser comes back from its folder") {
  const TemporaryFolder folder;
  const auto one = small();
  one->save(folder.file("unet"));
  const auto back = load_denoiser(folder.file("unet"));
  CHECK(back->component() == "unet");
  const auto mine = one->module().named_parameters(), theirs = back->module().named_parameters();
  REQUIRE(mine.size() == theirs.size());
  for (const auto& item : mine) CHECK(at::equal(item.value(), theirs[item.key()]));
}

TEST_CASE("rows that a UNet does not take are refused by name") {
  const auto unet = small();
  const RowShape good{.latents = {3, 8, 8}, .text_dim = 6, .pooled_dim = 0};
  CHECK_NOTHROW(unet->check_takes(good, "train.h5"));
  RowShape bad = good;
  bad.latents[0] = 4;
  CHECK_THAT(message_of<ConfigError>([&] { unet->check_takes(bad, "train.h5"); }),
             Contains("in_channels is 3, but train.h5 has 4"));
  bad = good;
  bad.text_dim = 7;
  CHECK_THAT(message_of<ConfigError>([&] { unet->check_takes(bad, "train.h5"); }), Contains("text dimension"));
  bad = good;
  bad.pooled_dim = 5;
  CHECK_THAT(message_of<ConfigError>([&] { unet->check_takes(bad, "train.h5"); }), Contains("/pooled"));
}

TEST_CASE("a model answers in float32, and counts timesteps as its schedule does") {
  Model model(std::make_unique<Echo>(), {.first_timestep = 1});
  const at::Tensor out = model.predict(at::zeros({2, 1, 2, 2}), at::tensor({3, 70}, at::kLong), {});
  CHECK(out.scalar_type() == at::kFloat);
  CHECK(at::equal(out.select(1, 0).select(1, 0).select(1, 0), at::tensor({4.f, 71.f})));
  CHECK(model.kind() == "echo");
  Model from_zero(std::make_unique<Echo>(), {});
  CHECK(from_zero.predict(at::zeros({1, 1, 1, 1}), at::tensor({3}, at::kLong), {}).item<float>() == 3);
}

TEST_CASE("adapters are what is trained, and can be switched off for a scope") {
  Model model(small(), {});
  const at::Tensor before = answer(model);
  const auto own = model.parameters();
  CHECK(model.kind() == "unet");
  CHECK(model.base_fingerprint().empty());
  model.add_lora(LoraConfig(), 3, "lora");
  CHECK(model.kind() == "lora");
  CHECK(model.base_fingerprint().size() == 16);
  CHECK(model.parameters().size() < own.size());
  for (const auto& [name, p] : own) CHECK_FALSE(p.requires_grad());
  const at::NoGradGuard no_grad;
  for (const auto& p : model.parameter_list()) at::Tensor(p).fill_(0.25);
  CHECK_FALSE(at::equal(answer(model), before));
  {
    const AdaptersOff off(model);
    CHECK(at::equal(answer(model), before));
  }
  CHECK_FALSE(at::equal(answer(model), before));
}

}  // namespace of_test_model
