#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <diffusion/models/common/adapter.h>
#include <diffusion/models/common/gradient_checkpointing.h>
#include <diffusion/models/unet/unet.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_checkpoint {

using namespace memsieve::diffusion;

namespace {

UNet2DConditionModel make_unet() {
  at::set_num_threads(1);
  at::manual_seed(3);
  UNet2DConditionModel model(parse_unet_config(R"({
    "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 16, 24], "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2, 3], "attention_head_dim": 2, "cross_attention_dim": 7})",
                                               "small"));
  model->train();
  return model;
}

struct Inputs {
  at::Tensor sample, timestep, text;
};

Inputs make_inputs(int64_t size = 8) {
  at::manual_seed(4);
  return {at::randn({2, 3, size, size}), at::tensor({7, 500}), at::randn({2, 6, 7})};
}

struct Autocast {
  explicit Autocast(bool on) : on(on) {
    if (!on) return;
    at::autocast::increment_nesting();
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    at::autocast::set_autocast_enabled(at::kCPU, true);
  }
  ~Autocast() {
    if (!on) return;
    at::autocast::set_autocast_enabled(at::kCPU, false);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  }
  bool on;
};

struct Result {
  at::Tensor prediction;
  std::vector<std::pair<std::string, at::Tensor>> gradients;
};

Result pass(UNet2DConditionModel& model, const Inputs& in, bool bf16) {
  model->zero_grad();
  Result result;
  {
    const Autocast autocast(bf16);
    result.prediction = model->forward(in.sample, in.timestep, in.text);
  }
  result.prediction.to(at::kDouble).square().mean().backward();
  for (const auto& item : model->named_parameters()) result.gradients.emplace_back(item.key(), item->grad().clone());
  return result;
}

// What torch's CPU allocator holds, and the most it held.
struct Meter : c10::MemoryReportingInfoBase {
  int64_t now = 0, peak = 0;
  void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
    now += size;
    peak = std::max(peak, now);
  }
  bool memoryProfilingEnabled() const override { return true; }
};

}  // namespace

// Norm of the difference over the norm. A tensor that several layers read sums its gradients in another order.
double difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

TEST_CASE("checkpointing: the same prediction bit for bit, and the same gradients") {
  // In double the order of sums does not hide an error; in bf16 it is most of what is seen.
  const auto [dtype, bf16, tolerance] = GENERATE(table<at::ScalarType, bool, double>(
      {{at::kDouble, false, 1e-12}, {at::kFloat, false, 1e-5}, {at::kFloat, true, 4e-2}}));
  auto model = make_unet();
  model->to(dtype);
  const Inputs in = make_inputs();
  {
    INFO(c10::toString(dtype) << " bf16 " << bf16);
    model->set_gradient_checkpointing(false);
    const Result plain = pass(model, in, bf16);
    model->set_gradient_checkpointing(true);
    const Result again = pass(model, in, bf16);
    CHECK(at::equal(again.prediction, plain.prediction));
    REQUIRE(again.gradients.size() == plain.gradients.size());
    for (std::size_t i = 0; i < plain.gradients.size(); ++i) {
      INFO(plain.gradients[i].first);
      CHECK(plain.gradients[i].second.abs().max().item<float>() > 0);
      CHECK(difference(again.gradients[i].second, plain.gradients[i].second) < tolerance);
    }
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    CHECK(at::autocast::is_autocast_cache_enabled());
  }
}

TEST_CASE("checkpointing: less is kept for backward, and the peak is lower") {
  auto model = make_unet();
  const Inputs in = make_inputs(32);
  std::vector<int64_t> kept, peaks;
  for (const bool on : {false, true}) {
    model->set_gradient_checkpointing(on);
    pass(model, in, false);  // gradients exist from now on
    auto meter = std::make_shared<Meter>();
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, meter);
    const at::Tensor loss = model->forward(in.sample, in.timestep, in.text).square().mean();
    kept.push_back(meter->now);
    loss.backward();
    peaks.push_back(meter->peak);
  }
  INFO("kept " << kept[0] << " and " << kept[1] << " bytes, peaks " << peaks[0] << " and " << peaks[1]);
  CHECK(kept[1] < 0.4 * kept[0]);
  CHECK(peaks[1] < 0.7 * peaks[0]);
}

TEST_CASE("checkpointing: every parameter's gradient is accumulated once per backward") {
  auto model = make_unet();
  model->set_gradient_checkpointing(true);
  const Inputs in = make_inputs();
  struct Count : torch::autograd::FunctionPostHook {
    explicit Count(int& count) : count(count) {}
    int& count;
    torch::autograd::variable_list operator()(const torch::autograd::variable_list& outputs,
                                              const torch::autograd::variable_list&) override {
      ++count;
      return outputs;
    }
  };
  const auto parameters = model->parameters();
  std::vector<int> counts(parameters.size(), 0);
  std::vector<std::shared_ptr<torch::autograd::Node>> accumulators;  // as a reducer keeps them
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    accumulators.push_back(torch::autograd::impl::grad_accumulator(parameters[i]));
    accumulators.back()->add_post_hook(std::make_unique<Count>(counts[i]));
  }
  for (int round = 1; round <= 2; ++round) {
    model->forward(in.sample, in.timestep, in.text).square().mean().backward();
    CHECK(counts == std::vector<int>(parameters.size(), round));
  }
}

TEST_CASE("checkpointing: a pass without gradient, or of frozen parameters, is a plain one") {
  auto model = make_unet();
  const Inputs in = make_inputs();
  at::Tensor expected;
  {
    const at::NoGradGuard no_grad;
    expected = model->forward(in.sample, in.timestep, in.text);
    model->set_gradient_checkpointing(true);
    CHECK(at::equal(model->forward(in.sample, in.timestep, in.text), expected));
  }
  for (auto& p : model->parameters()) p.set_requires_grad(false);
  const at::Tensor out = model->forward(in.sample, in.timestep, in.text);
  CHECK(at::equal(out, expected));
  CHECK_FALSE(out.requires_grad());
}

TEST_CASE("checkpointing: adapters in a frozen UNet are trained the same, those of the first block too") {
  auto model = make_unet();
  model->to(at::kDouble);
  const Inputs in = make_inputs();
  for (auto& p : model->parameters()) p.set_requires_grad(false);
  std::vector<std::shared_ptr<LowRank>> adapters;
  for (const auto& module : model->modules())
    if (auto* layer = dynamic_cast<LinearImpl*>(module.get())) {
      auto low = std::make_shared<LowRank>();
      low->a = at::randn({2, layer->weight.size(1)}, at::kDouble).set_requires_grad(true);
      low->b = at::randn({layer->weight.size(0), 2}, at::kDouble).mul(0.1).set_requires_grad(true);
      layer->adapt(low);
      adapters.push_back(low);
    }
  const auto gradients = [&](bool on) {
    model->set_gradient_checkpointing(on);
    for (const auto& low : adapters) low->a.mutable_grad() = low->b.mutable_grad() = at::Tensor();
    model->forward(in.sample, in.timestep, in.text).square().mean().backward();
    std::vector<at::Tensor> out;
    for (const auto& low : adapters)
      for (const at::Tensor* t : {&low->a, &low->b}) {
        REQUIRE(t->grad().defined());
        out.push_back(t->grad().clone());
      }
    return out;
  };
  const auto plain = gradients(false), again = gradients(true);
  for (std::size_t i = 0; i < plain.size(); ++i) CHECK(difference(again[i], plain[i]) < 1e-12);
}

TEST_CASE("checkpoint: inputs without gradient get none, unused parameters neither, and errors pass through") {
  const at::Tensor x = at::randn({3}), w = at::randn({3}).set_requires_grad(true),
                   unused = at::randn({3}).set_requires_grad(true);
  int calls = 0;
  const at::Tensor y = checkpoint(
      [&](const std::vector<at::Tensor>& in) {
        ++calls;
        return in[0] * w;
      },
      {x}, {w, unused});
  CHECK(calls == 1);
  y.sum().backward();
  CHECK(calls == 2);
  CHECK(at::equal(w.grad(), x));
  CHECK_FALSE(unused.grad().defined());
  CHECK_THROWS_WITH(
      checkpoint([](const std::vector<at::Tensor>&) -> at::Tensor { throw std::runtime_error("why"); }, {x}, {w}),
      "why");
}

}  // namespace of_test_checkpoint
