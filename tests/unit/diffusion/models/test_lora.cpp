#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <diffusion/io/safetensors.h>
#include <diffusion/models/lora/lora.h>
#include <diffusion/models/unet/unet.h>

#include <cmath>

#include <support/files.h>
#include <support/message_of.h>

namespace of_test_lora {

using namespace memsieve;
using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Contains;

namespace {

UNet2DConditionModel small_unet(uint64_t seed = 1) {
  UNetConfig config;
  config.in_channels = config.out_channels = 3;
  config.block_out_channels = {8, 16};
  config.down_block_types = {"CrossAttnDownBlock2D", "DownBlock2D"};
  config.up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D"};
  config.layers_per_block = {1, 1};
  config.transformer_layers_per_block = {1, 1};
  config.attention_head_dim = {2, 2};
  config.cross_attention_dim = {6, 6};
  config.norm_num_groups = 4;
  at::manual_seed(seed);
  return UNet2DConditionModel(config);
}

at::Tensor answer(UNet2DConditionModel& unet) {
  at::manual_seed(9);
  const at::Tensor sample = at::randn({2, 3, 8, 8}), text = at::randn({2, 4, 6});
  return unet->forward(sample, at::tensor({3, 700}, at::kLong), text);
}

// B starts at 0, so that nothing but B would have a gradient.
void fill(const Lora& lora) {
  at::NoGradGuard no_grad;
  for (auto& [name, parameter] : lora.parameters()) at::Tensor(parameter).copy_(at::randn(parameter.sizes()) * 0.2);
}

LoraConfig everywhere() {
  LoraConfig config;
  config.target_modules = {"to_q", "to_k", "to_v", "to_out.0", "proj_in", "net.0.proj", "time_emb_proj", "conv1"};
  return config;
}

}  // namespace

TEST_CASE("lora: fresh adapters change nothing, and off they are not there") {
  UNet2DConditionModel unet = small_unet();
  const at::Tensor before = answer(unet).detach();
  Lora lora(*unet, everywhere(), 3, "test");
  CHECK(at::equal(answer(unet).detach(), before));
  fill(lora);
  CHECK_FALSE(at::allclose(answer(unet).detach(), before));
  lora.apply(false);
  CHECK(at::equal(answer(unet).detach(), before));
}

TEST_CASE("lora: merged, the model answers the same without them") {
  UNet2DConditionModel unet = small_unet();
  const at::Tensor base = answer(unet).detach();
  const Lora lora(*unet, everywhere(), 3, "test");
  fill(lora);
  const at::Tensor adapted = answer(unet).detach();
  REQUIRE_FALSE(at::allclose(adapted, base, 1e-2, 1e-2));
  lora.merge(*unet);
  CHECK(at::allclose(answer(unet).detach(), adapted, 1e-4, 1e-4));
  fill(lora);  // they are off the model
  CHECK(at::allclose(answer(unet).detach(), adapted, 1e-4, 1e-4));
}

TEST_CASE("lora: adapters are trained and nothing else") {
  UNet2DConditionModel unet = small_unet();
  Lora lora(*unet, everywhere(), 3, "test");
  fill(lora);
  const bool checkpointing = GENERATE(false, true);
  unet->set_gradient_checkpointing(checkpointing);
  answer(unet).square().sum().backward();
  for (const auto& parameter : unet->parameters()) CHECK_FALSE(parameter.grad().defined());
  REQUIRE(lora.parameters().size() == static_cast<size_t>(2 * lora.layers()));
  for (const auto& [name, parameter] : lora.parameters()) {
    INFO(name);
    REQUIRE(parameter.grad().defined());
    CHECK(parameter.grad().abs().max().item<float>() > 0);
  }
}

TEST_CASE("lora: A starts as said, from the seed alone") {
  LoraConfig config;
  config.rank = 64;
  config.gaussian = GENERATE(false, true);
  UNet2DConditionModel one = small_unet(1), two = small_unet(2), three = small_unet(1);
  const auto a = Lora(*one, config, 5, "test").parameters(), b = Lora(*two, config, 5, "test").parameters(),
             c = Lora(*three, config, 6, "test").parameters();
  for (size_t i = 0; i < a.size(); ++i) {
    const auto& [name, tensor] = a[i];
    INFO(name);
    CHECK(at::equal(tensor, b[i].second));
    if (name.find("lora_B") != std::string::npos) {
      CHECK(at::count_nonzero(tensor).item<int64_t>() == 0);
      continue;
    }
    CHECK_FALSE(at::equal(tensor, c[i].second));
    const double bound = 1 / std::sqrt(static_cast<double>(tensor.size(1)));
    if (config.gaussian) {
      CHECK(tensor.std().item<double>() == Approx(1.0 / 64).epsilon(0.2));
    } else {
      CHECK(tensor.abs().max().item<double>() <= bound);
      CHECK(tensor.abs().max().item<double>() > 0.95 * bound);
    }
  }
}

TEST_CASE("lora: what cannot be is named") {
  UNet2DConditionModel unet = small_unet();
  LoraConfig config;
  config.target_modules = {"to_q", "q"};
  CHECK_THAT(message_of<ConfigError>([&] { Lora(*unet, config, 0, "a.yaml:3: lora"); }),
             Contains("a.yaml:3: lora.target_modules: 'q'") && Contains("to_out.0") && Contains("conv_shortcut"));
  config = {};
  config.rank = 0;
  CHECK_THAT(message_of<ConfigError>([&] { Lora(*unet, config, 0, "lora"); }), Contains("lora.rank: is 0"));
  config = {};
  config.alpha = 0;
  CHECK_THAT(message_of<ConfigError>([&] { Lora(*unet, config, 0, "lora"); }), Contains("lora.alpha"));
}

TEST_CASE("lora: a saved adapter is read back, by another one too") {
  const TemporaryFolder folder;
  UNet2DConditionModel unet = small_unet(), other = small_unet();
  LoraConfig config = everywhere();
  config.alpha = 2.5;
  Lora lora(*unet, config, 3, "test");
  fill(lora);
  lora.save(folder.file("a"));
  const std::string file = folder.file("a/pytorch_lora_weights.safetensors");
  const Lora loaded = Lora::load(*other, file);
  CHECK(loaded.config().alpha == 2.5);
  CHECK(at::equal(answer(unet), answer(other)));
  UNet2DConditionModel third = small_unet();
  config.rank = 2;
  Lora smaller(*third, config, 3, "test");
  CHECK_THAT(message_of<DataError>([&] { smaller.restore(file); }), Contains(file) && Contains("[4, "));
  config.rank = 4;
  config.alpha = 4;
  UNet2DConditionModel fourth = small_unet();
  Lora louder(*fourth, config, 3, "test");
  CHECK_THAT(message_of<DataError>([&] { louder.restore(file); }), Contains(file) && Contains("alpha is 2.5"));
}

TEST_CASE("the names in an adapter's file begin with the model's in its pipeline") {
  const TemporaryFolder folder;
  UNet2DConditionModel unet = small_unet(), same = small_unet(), third = small_unet();
  Lora lora(*unet, LoraConfig(), 3, "test", "transformer");
  fill(lora);
  lora.save(folder.file("lora"));
  const std::string file = folder.file("lora/pytorch_lora_weights.safetensors");
  for (const auto& [name, tensor] : load_safetensors(file)) CHECK(name.rfind("transformer.", 0) == 0);
  Lora::load(*same, file, "transformer");
  CHECK(at::equal(answer(same), answer(unet)));
  CHECK_THAT(message_of<DataError>([&] { Lora::load(*third, file); }), Contains("transformer."));
}

TEST_CASE("lora: a base is known by every one of its numbers, not by where adapters are") {
  UNet2DConditionModel unet = small_unet(), same = small_unet(), other = small_unet(2);
  const std::string print = fingerprint(*unet);
  CHECK(print.size() == 16);
  Lora lora(*same, LoraConfig(), 0, "test");
  CHECK(fingerprint(*same) == print);
  CHECK_FALSE(fingerprint(*other) == print);
  at::NoGradGuard no_grad;
  unet->parameters().at(5).view(-1)[1] += 1e-6;
  CHECK_FALSE(fingerprint(*unet) == print);
}

}  // namespace of_test_lora
