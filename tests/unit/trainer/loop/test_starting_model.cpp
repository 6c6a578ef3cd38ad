// The starting model beside the trained one: what it answers, and that asking it leaves no trace.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <diffusion/models/common/adapter.h>
#include <diffusion/models/families.h>
#include <trainer/loop/make_model.h>
#include <trainer/loop/starting_model.h>

#include <support/files.h>
#include <support/process_ranks.h>

namespace of_test_starting_model {

using namespace memsieve;
using namespace memsieve::trainer;
using namespace memsieve::testing;

namespace {

const char* const kUNet =
    R"({"_class_name": "UNet2DConditionModel", "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 16],
  "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 6, "attention_head_dim": 2,
  "norm_num_groups": 4})";

struct Question {
  at::Tensor sample, timestep;
  Conditioning condition;
};

Question question(uint64_t seed) {
  const auto g = at::detail::createCPUGenerator(seed);
  return {at::randn({2, 3, 8, 8}, g), at::tensor({3, 700}, at::kLong), at::randn({2, 4, 6}, g)};
}

at::Tensor answer(Model& model, const Question& q) {
  return model.predict(q.sample, q.timestep, q.condition);
}

/// Adapters start as nothing: numbers that change the model.
void fill(Model& model) {
  const at::NoGradGuard no_grad;
  const auto g = at::detail::createCPUGenerator(4);
  for (const at::Tensor& p : model.parameter_list()) p.copy_(at::randn(p.sizes(), g) * 0.2);
}

/// A folder with a config.json, and models of it.
struct World {
  World() { write_file(folder.file("config.json"), kUNet); }

  ModelSource source(bool lora = false) const {
    ModelSource source;
    source.config = folder.file("config.json");
    source.seed = 3;
    if (lora) source.lora = LoraConfig();
    return source;
  }
  /// What `body` does on the only rank.
  static void alone(const std::function<void(Group&)>& body) {
    CHECK(memsieve::testing::run_groups(1, body) == memsieve::testing::no_errors(1));
  }

  TemporaryFolder folder;
};

/// The gradients of a step in whose middle `between` happens.
std::vector<at::Tensor> gradients(Model& model, const std::function<void()>& between) {
  for (const at::Tensor& p : model.parameter_list()) p.mutable_grad() = at::Tensor();
  const at::Tensor loss = answer(model, question(1)).square().sum();
  between();
  loss.backward();
  std::vector<at::Tensor> all;
  for (const at::Tensor& p : model.parameter_list()) all.push_back(p.grad().clone());
  return all;
}

}  // namespace

TEST_CASE("with adapters the starting model is the model without them, and asking it changes nothing") {
  const World world;
  ModelSource source = world.source(/*lora=*/true);
  source.gradient_checkpointing = GENERATE(false, true);
  const bool mixed = GENERATE(false, true);
  if (mixed) source.model.autocast = at::kBFloat16;
  World::alone([&](Group& group) {
    Model base = make_starting_model(source, group), model = make_model(source, "", group);
    fill(model);
    StartingModel start(model);
    const at::Tensor expected = answer(base, question(2)).detach(), trained = answer(model, question(2)).detach();
    at::Tensor got;
    const auto undisturbed = gradients(model, [] {});
    const auto asked = gradients(model, [&] {
      const Question q = question(2);
      got = start.predict(q.sample, q.timestep, q.condition);
    });
    CHECK(at::allclose(got, expected, 0, mixed ? 0.02 : 0));
    CHECK_FALSE(got.requires_grad());
    CHECK_FALSE(at::allclose(trained, expected, 0, 0.05));
    CHECK(at::equal(answer(model, question(2)).detach(), trained));
    REQUIRE(asked.size() == undisturbed.size());
    for (size_t i = 0; i < asked.size(); ++i) CHECK(at::equal(asked[i], undisturbed[i]));
    CHECK(start.bytes() == 0);
    CHECK(start.fingerprint() == model.base_fingerprint());
  });
}

TEST_CASE("adapters that were off before stay off after the starting model was asked") {
  const World world;
  World::alone([&](Group& group) {
    Model model = make_model(world.source(true), "", group);
    fill(model);
    StartingModel start(model);
    const Question q = question(2);
    const AdaptersOff off(model);
    const at::Tensor without = answer(model, q).detach();
    CHECK(at::equal(start.predict(q.sample, q.timestep, q.condition), without));
    CHECK(at::equal(answer(model, q).detach(), without));
  });
}

TEST_CASE("without adapters the starting model is a frozen copy, whatever becomes of the trained one") {
  const World world;
  World::alone([&](Group& group) {
    Model model = make_model(world.source(), "", group);
    StartingModel start(std::make_unique<Model>(make_starting_model(world.source(), group)));
    const Question q = question(2);
    const at::Tensor first = answer(model, q).detach();
    CHECK(at::equal(start.predict(q.sample, q.timestep, q.condition), first));
    const auto undisturbed = gradients(model, [] {});
    const auto asked = gradients(model, [&] { start.predict(q.sample, q.timestep, q.condition); });
    for (size_t i = 0; i < asked.size(); ++i) CHECK(at::equal(asked[i], undisturbed[i]));
    {
      const at::NoGradGuard no_grad;
      for (const at::Tensor& p : model.parameter_list()) p.add_(0.1);
    }
    CHECK_FALSE(at::allclose(answer(model, q).detach(), first));
    CHECK(at::equal(start.predict(q.sample, q.timestep, q.condition), first));
    // As resuming makes it: from where the run began, not from the checkpoint.
    model.save(world.folder.file("checkpoint/unet"));
    Model resumed = make_model(world.source(), world.folder.file("checkpoint"), group);
    CHECK(at::equal(answer(resumed, q).detach(), answer(model, q).detach()));
    StartingModel again(std::make_unique<Model>(make_starting_model(world.source(), group)));
    CHECK(at::equal(again.predict(q.sample, q.timestep, q.condition), first));
    CHECK(again.fingerprint() == start.fingerprint());
  });
}

TEST_CASE("a frozen copy takes the dtype that it computes in, but for norms, and its size is told") {
  const World world;
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kHalf);
  ModelSource source = world.source();
  if (dtype != at::kFloat) source.model.autocast = dtype;
  World::alone([&](Group& group) {
    auto made = std::make_unique<Model>(make_starting_model(source, group));
    Model& copy = *made;
    StartingModel start(std::move(made));
    int64_t bytes = 0, numbers = 0, adaptable = 0;
    for (const auto& layer : copy.denoiser().module().modules(/*include_self=*/false)) {
      const bool computes = dynamic_cast<Adaptable*>(layer.get()) != nullptr;
      for (const at::Tensor& p : layer->parameters(/*recurse=*/false)) {
        CHECK(p.scalar_type() == (computes ? dtype : at::kFloat));
        CHECK_FALSE(p.requires_grad());
        bytes += p.numel() * (computes && dtype != at::kFloat ? 2 : 4);
        numbers += p.numel();
        if (computes) adaptable += p.numel();
      }
    }
    CHECK(start.bytes() == bytes);
    CHECK(adaptable > 0.9 * static_cast<double>(numbers));
    Model trained = make_model(source, "", group);
    const Question q = question(2);
    // The weights are rounded once, as autocast rounds them in each pass.
    if (dtype != at::kHalf)
      CHECK(at::allclose(start.predict(q.sample, q.timestep, q.condition), answer(trained, q).detach(), 0, 1e-6));
  });
}

}  // namespace of_test_starting_model
