// Our kernels for the CPU against torch's operators.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <diffusion/models/common/attention.h>
#include <diffusion/models/common/group_norm.h>
#include <diffusion/models/common/vectorised.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own
#include <cmath>

namespace of_test_kernels {

using namespace memsieve::diffusion;

namespace {

struct Case {
  int64_t batch, channels, height, width, groups;
  double mean, scale;
};

struct Norm {
  torch::nn::GroupNorm module{nullptr};
  at::Tensor x, dy;

  explicit Norm(const Case& c) {
    at::manual_seed(1);
    module = torch::nn::GroupNorm(torch::nn::GroupNormOptions(c.groups, c.channels).eps(1e-5));
    module->weight.set_data(at::randn({c.channels}));
    module->bias.set_data(at::randn({c.channels}));
    const std::vector<int64_t> sizes = {c.batch, c.channels, c.height, c.width};
    x = (at::randn(sizes) * c.scale + c.mean).contiguous(at::MemoryFormat::ChannelsLast);
    dy = at::randn(sizes);
  }

  /// y, dx, dgamma, dbeta
  std::vector<at::Tensor> run(bool ours, bool activate, at::ScalarType dtype = at::kFloat) {
    module->to(dtype);
    const at::Tensor in = x.to(dtype).detach().requires_grad_(true);
    const at::Tensor normed = ours ? group_norm(module, in, activate) : module(in);
    const at::Tensor y = ours || !activate ? normed : at::silu(normed);
    const auto g = torch::autograd::grad({y}, {in, module->weight, module->bias}, {dy.to(dtype)});
    module->to(at::kFloat);
    return {y.detach(), g[0], g[1], g[2]};
  }
};

double worst(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

}  // namespace

TEST_CASE("the exponential stays within two units in the last place") {
  double largest = 0;
  for (float x = -87; x <= 88; x += 1e-3F)
    largest = std::max(largest, std::abs(double(vector_exp(x)) / std::exp(double(x)) - 1));
  REQUIRE(largest < 2.4e-7);
  REQUIRE((vector_exp(-1000) < 1e-37F && vector_exp(-1000) >= 0 && std::isfinite(vector_exp(1000))));
  REQUIRE(std::isnan(vector_sigmoid(std::nanf(""))));
}

TEST_CASE("group norm with SiLU agrees with torch's in double precision") {
  // one pixel; odd sizes; more than one block of pixels; one channel a group; one group; a mean far from zero
  const auto c = GENERATE(Case{1, 16, 1, 1, 1, 0, 1}, Case{3, 12, 5, 3, 4, 0.5, 1}, Case{2, 32, 16, 16, 8, 0, 3},
                          Case{2, 6, 9, 31, 6, 0, 1}, Case{4, 80, 8, 8, 1, -1, 1}, Case{2, 16, 12, 12, 4, 300, 1});
  for (const bool activate : {false, true}) {
    Norm norm(c);
    const auto found = norm.run(true, activate), expected = norm.run(false, activate, at::kDouble);
    CAPTURE(c.channels, c.height, activate);
    for (size_t i = 0; i < 4; ++i) CHECK(worst(found[i], expected[i]) < (c.mean > 100 ? 2e-4 : 3e-6));
    REQUIRE(found[0].is_contiguous(at::MemoryFormat::ChannelsLast));
  }
}

TEST_CASE("group norm gives the same bits with any number of threads") {
  Norm norm({3, 40, 17, 13, 4, 0.2, 1});
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = norm.run(true, true);
  at::set_num_threads(4);
  const auto four = norm.run(true, true);
  at::set_num_threads(before);
  for (size_t i = 0; i < 4; ++i) REQUIRE(at::equal(one[i], four[i]));
}

TEST_CASE("group norm of other layouts and frozen weights") {
  Norm norm({2, 8, 4, 4, 2, 0, 1});
  const auto expected = norm.run(true, true);
  norm.x = norm.x.contiguous();
  const auto found = norm.run(true, true);
  for (size_t i = 0; i < 4; ++i) REQUIRE(worst(found[i], expected[i]) < 1e-5);
  norm.module->weight.requires_grad_(false);
  norm.module->bias.requires_grad_(false);
  norm.x = norm.x.contiguous(at::MemoryFormat::ChannelsLast);
  REQUIRE_FALSE(group_norm(norm.module, norm.x, true).requires_grad());
  const at::Tensor in = norm.x.detach().requires_grad_(true);
  REQUIRE(at::equal(torch::autograd::grad({group_norm(norm.module, in, true)}, {in}, {norm.dy})[0], expected[1]));
}

TEST_CASE("attention agrees with torch's in double precision, whatever the shape") {
  at::manual_seed(2);
  const int64_t dim = GENERATE(4, 10, 15, 16, 40), keys = GENERATE(1, 12, 150);
  std::vector<at::Tensor> in, same;
  for (const int64_t length : {int64_t{160}, keys, keys}) {
    in.push_back(at::randn({2, length, 3, dim}).requires_grad_(true));
    same.push_back(in.back().detach().to(at::kDouble).requires_grad_(true));
  }
  const auto head = [](const at::Tensor& t) { return t.transpose(1, 2); };
  const at::Tensor found = attend(head(in[0]), head(in[1]), head(in[2]));
  const at::Tensor expected = at::scaled_dot_product_attention(head(same[0]), head(same[1]), head(same[2]));
  CAPTURE(dim, keys);
  CHECK(worst(found, expected) < 3e-6);
  const at::Tensor d = at::randn(found.sizes());
  const auto a = torch::autograd::grad({found}, in, {d});
  const auto b = torch::autograd::grad({expected}, same, {d.to(at::kDouble)});
  for (size_t i = keys == 1 ? 2 : 0; i < 3; ++i) CHECK(worst(a[i], b[i]) < 3e-6);  // of one key: v alone matters
}

}  // namespace of_test_kernels
