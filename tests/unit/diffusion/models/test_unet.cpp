#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <memsieve/error.h>
#include <diffusion/io/safetensors.h>
#include <diffusion/models/common/layers.h>
#include <diffusion/models/unet/unet.h>

#include <cmath>

#include <support/files.h>
#include <support/message_of.h>

namespace of_test_unet {

using namespace memsieve::diffusion;
using namespace memsieve::testing;
using Catch::Matchers::Contains;
using memsieve::ConfigError;
using memsieve::DataError;

namespace {

UNetConfig small_config() {
  return parse_unet_config(R"({
    "in_channels": 3, "out_channels": 5, "block_out_channels": [8, 16, 24], "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1,
    "attention_head_dim": 2, "cross_attention_dim": 12, "encoder_hid_dim": 7})",
                           "small");
}

UNet2DConditionModel small_unet() {
  at::manual_seed(3);
  return UNet2DConditionModel(small_config());
}

struct Inputs {
  at::Tensor sample, timestep, text;
};

Inputs inputs(int64_t rows, int64_t height, int64_t width) {
  at::manual_seed(4);
  return {at::randn({rows, 3, height, width}), at::randint(0, 1000, {rows}, at::kLong), at::randn({rows, 6, 7})};
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

}  // namespace

TEST_CASE("timestep features: sines and cosines of t / 10000^(i / half)") {
  const at::Tensor t = at::tensor({0.0F, 3.0F});
  const at::Tensor f = timestep_features(t, 4, true, 0);
  REQUIRE(f.sizes() == at::IntArrayRef({2, 4}));
  CHECK(at::allclose(f[0], at::tensor({1.0F, 1.0F, 0.0F, 0.0F})));
  const float slow = 3.0F / 100.0F;
  CHECK(at::allclose(f[1], at::tensor({std::cos(3.0F), std::cos(slow), std::sin(3.0F), std::sin(slow)})));
  CHECK(at::allclose(timestep_features(t, 5, false, 0)[1],
                     at::tensor({std::sin(3.0F), std::sin(slow), std::cos(3.0F), std::cos(slow), 0.0F})));
  // A shift of 1 makes the last frequency 1/10000.
  CHECK(timestep_features(t, 4, true, 1)[1][3].item<float>() == Approx(std::sin(3e-4)));
}

TEST_CASE("unet: any height and width") {
  auto model = small_unet();
  at::NoGradGuard no_grad;
  for (const auto& [height, width] : {std::pair{8, 8}, {16, 8}, {9, 7}, {5, 12}, {1, 1}, {3, 2}}) {
    const Inputs in = inputs(2, height, width);
    const at::Tensor out = model->forward(in.sample, in.timestep, in.text);
    CHECK(out.sizes() == at::IntArrayRef({2, 5, height, width}));
    CHECK(out.isfinite().all().item<bool>());
  }
}

TEST_CASE("unet: a row depends on its own sample, timestep and text, on each of them, and on nothing else") {
  auto model = small_unet();
  at::NoGradGuard no_grad;
  const Inputs in = inputs(4, 8, 8);
  const at::Tensor all = model->forward(in.sample, in.timestep, in.text);
  for (int64_t i = 0; i < 4; ++i) {
    const auto row = [&](const at::Tensor& x) { return x.narrow(0, i, 1); };
    CHECK(difference(model->forward(row(in.sample), row(in.timestep), row(in.text)), row(all)) < 1e-5);
  }
  CHECK(difference(model->forward(in.sample.flip(0), in.timestep, in.text), all) > 1e-2);
  CHECK(difference(model->forward(in.sample, 999 - in.timestep, in.text), all) > 1e-3);
  CHECK(difference(model->forward(in.sample, in.timestep, in.text.flip(0)), all) > 1e-3);
}

TEST_CASE("unet: memory format and dtype of the inputs do not matter") {
  auto model = small_unet();
  at::NoGradGuard no_grad;
  const Inputs in = inputs(2, 8, 8);
  const at::Tensor out = model->forward(in.sample, in.timestep, in.text);
  CHECK(at::equal(model->forward(in.sample.contiguous(at::MemoryFormat::ChannelsLast), in.timestep, in.text), out));
  CHECK(at::equal(model->forward(in.sample, in.timestep.to(at::kFloat), in.text), out));
  CHECK(model->forward(in.sample.to(at::kDouble), in.timestep, in.text.to(at::kDouble)).scalar_type() == at::kFloat);
  const at::Tensor same = at::full({2}, 7, at::kLong);
  CHECK(at::equal(model->forward(in.sample, at::full({}, 7, at::kLong), in.text),
                  model->forward(in.sample, same, in.text)));
  model->to(at::kBFloat16);
  const at::Tensor coarse = model->forward(in.sample, in.timestep, in.text);
  CHECK(coarse.scalar_type() == at::kBFloat16);
  CHECK(difference(coarse.to(at::kFloat), out) < 0.1);
}

TEST_CASE("unet: the gradient reaches every parameter and agrees with finite differences") {
  at::set_num_threads(1);  // hundreds of tiny forwards: more threads would only wait for each other
  auto model = small_unet();
  model->to(at::kDouble);
  const Inputs in = inputs(3, 9, 6);
  const auto loss = [&] { return model->forward(in.sample, in.timestep, in.text).square().mean(); };
  loss().backward();
  at::manual_seed(5);
  for (auto& item : model->named_parameters()) {
    INFO(item.key());
    at::Tensor parameter = item.value();
    REQUIRE(parameter.grad().defined());
    REQUIRE(parameter.grad().abs().max().item<double>() > 0);
    at::NoGradGuard no_grad;
    const at::Tensor direction = at::randn_like(parameter);
    const double step = 1e-5, expected = (parameter.grad() * direction).sum().item<double>();
    parameter.add_(direction, step);
    const double above = loss().item<double>();
    parameter.add_(direction, -2 * step);
    const double below = loss().item<double>();
    parameter.add_(direction, step);
    CHECK((above - below) / (2 * step) == Approx(expected).epsilon(1e-4).margin(1e-8));
  }
}

TEST_CASE("unet: inputs of the wrong shape are named") {
  auto model = small_unet();
  const Inputs in = inputs(2, 8, 8);
  const auto error = [&](const at::Tensor& sample, const at::Tensor& timestep, const at::Tensor& text) {
    return message_of<DataError>([&] { model->forward(sample, timestep, text); });
  };
  CHECK_THAT(error(in.sample.narrow(1, 0, 2), in.timestep, in.text), Contains("sample is [2, 2, 8, 8]"));
  CHECK_THAT(error(in.sample[0], in.timestep, in.text), Contains("sample is [3, 8, 8]"));
  CHECK_THAT(error(in.sample, in.timestep.narrow(0, 0, 1), in.text), Contains("timestep is [1]"));
  CHECK_THAT(error(in.sample, in.timestep, in.text.narrow(2, 0, 6)), Contains("must be [2, L, 7]"));
  CHECK_THAT(error(in.sample, in.timestep, in.text.narrow(0, 0, 1)), Contains("encoder_hidden_states is [1, 6, 7]"));
  UNetConfig wrong = small_config();
  wrong.attention_head_dim = {2};
  CHECK_THROWS_AS(UNet2DConditionModel(wrong), ConfigError);
}

TEST_CASE("unet folder: saved and loaded, the model is the same") {
  TemporaryFolder folder;
  auto model = small_unet();
  save_unet(folder.file("a/unet"), model);
  auto again = load_unet(folder.file("a/unet"));
  const auto before = model->named_parameters(), after = again->named_parameters();
  REQUIRE(after.keys() == before.keys());
  for (const auto& item : before) CHECK(at::equal(item.value(), after[item.key()]));
  CHECK(to_json(again->config()) == to_json(model->config()));
  at::NoGradGuard no_grad;
  const Inputs in = inputs(2, 8, 8);
  CHECK(at::equal(again->forward(in.sample, in.timestep, in.text), model->forward(in.sample, in.timestep, in.text)));

  model->to(at::kHalf);
  save_unet(folder.file("half"), model);
  CHECK(load_safetensors(folder.file("half/diffusion_pytorch_model.safetensors")).at("conv_in.weight").scalar_type() ==
        at::kHalf);
  CHECK(load_unet(folder.file("half"))->parameters()[0].scalar_type() == at::kFloat);
}

TEST_CASE("unet folder: weights that do not fit are named") {
  TemporaryFolder folder;
  save_unet(folder.file("u"), small_unet());
  const std::string path = folder.file("u/diffusion_pytorch_model.safetensors");
  const TensorMap good = load_safetensors(path);
  const auto error_with = [&](const std::function<void(TensorMap&)>& damage) {
    TensorMap tensors = good;
    damage(tensors);
    save_safetensors(path, tensors);
    const std::string message = message_of<DataError>([&] { load_unet(folder.file("u")); });
    CHECK_THAT(message, Contains(path));
    return message;
  };
  CHECK_THAT(error_with([](TensorMap& t) { t.erase("conv_out.bias"); }), Contains("'conv_out.bias' is missing"));
  CHECK_THAT(error_with([](TensorMap& t) { t["x"] = t["y"] = at::zeros({1}); }),
             Contains("'x' has no place") && Contains("1 other"));
  CHECK_THAT(error_with([](TensorMap& t) {
               t["conv_out.bias"] = at::zeros({2, 2});
             }),
             Contains("'conv_out.bias' is [2, 2]") && Contains("asks for [5]"));
  write_file(path, read_file(path).substr(0, 1000));
  CHECK_THROWS_AS(load_unet(folder.file("u")), DataError);
  std::filesystem::remove(path);
  CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }),
             Contains(path) && Contains("cannot be opened"));
  CHECK_THAT(message_of<ConfigError>([&] { load_unet(folder.file("absent")); }), Contains("absent/config.json"));
}

TEST_CASE("unet folder: shards are read, and an index that lies is refused") {
  TemporaryFolder folder;
  auto model = small_unet();
  save_unet(folder.file("u"), model);
  const std::string whole = folder.file("u/diffusion_pytorch_model.safetensors");
  TensorMap first = load_safetensors(whole), second;
  std::string map;
  for (const auto& [name, tensor] : first) {
    const bool late = name > "mid";
    if (late) second[name] = tensor;
    map += (map.empty() ? "\"" : ",\"") + name + "\":\"" + (late ? "two" : "one") + ".safetensors\"";
  }
  for (const auto& [name, tensor] : second) first.erase(name);
  save_safetensors(folder.file("u/one.safetensors"), first);
  save_safetensors(folder.file("u/two.safetensors"), second);
  std::filesystem::remove(whole);
  const std::string index = whole + ".index.json";
  write_file(index, "{\"weight_map\":{" + map + "}}");
  auto again = load_unet(folder.file("u"));
  for (const auto& item : model->named_parameters())
    CHECK(at::equal(item.value(), again->named_parameters()[item.key()]));

  write_file(index, R"({"weight_map":{"a":"../one.safetensors"}})");
  CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }),
             Contains(index) && Contains("not the name of"));
  for (const char* name : {"\"/etc/x.safetensors\"", "\"..\"", "\"\"", "\".\"", "3", "null", "\"one.bin\"",
                           "\"sub/one.safetensors\"", "\"..\\\\one.safetensors\"", "\"one\\u0000.safetensors\""}) {
    INFO(name);
    write_file(index, "{\"weight_map\":{\"a\":" + std::string(name) + "}}");
    CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }),
               Contains(index) && Contains("not the name of"));
  }
  write_file(index, R"({"weight_map":{"a":"one.safetensors"}})");
  CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }), Contains("is missing"));
  write_file(index, R"({"weight_map":{"a":"three.safetensors"}})");
  CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }), Contains("three.safetensors"));
  write_file(index, "{}");
  CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }), Contains("weight_map"));
  second["conv_in.bias"] = first["conv_in.bias"];
  save_safetensors(folder.file("u/two.safetensors"), second);
  write_file(index, "{\"weight_map\":{" + map + "}}");
  CHECK_THAT(message_of<DataError>([&] { load_unet(folder.file("u")); }),
             Contains("'conv_in.bias'") && Contains("another shard"));
}

}  // namespace of_test_unet
