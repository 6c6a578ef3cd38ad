// Needs a GPU, so it runs only when asked for: test_runtime "[.cuda]".
#include <ATen/ATen.h>
#include <diffusion/data/codec.h>
#include <diffusion/noise/ddim.h>
#include <diffusion/noise/keyed.h>
#include <runtime/reducer.h>
#include <support/process_ranks.h>

#include <catch2/catch.hpp>

namespace of_test_cuda {

using namespace memsieve::diffusion;
using namespace memsieve::runtime;
using namespace memsieve::testing;

namespace {

const c10::Device kGpu(c10::kCUDA, 0);

std::vector<at::Tensor> parameters() {
  std::vector<at::Tensor> params;
  for (int i = 0; i < 4; ++i)
    params.push_back((at::arange(64, at::kFloat).view({8, 8}).sin() / 3).to(kGpu).set_requires_grad(true));
  return params;
}

at::Tensor loss(const std::vector<at::Tensor>& params) {
  at::Tensor x = at::arange(32, at::kFloat).view({4, 8}).cos().to(kGpu);
  for (const auto& p : params) x = x.matmul(p).tanh();
  return x.square().mean();
}

}  // namespace

TEST_CASE("a group over NCCL", "[.cuda]") {
  REQUIRE(choose_device(Launch{}, "auto") == kGpu);
  Group group(Launch{}, kGpu, impatient(60, 60));
  const auto values = at::arange(5, at::kFloat).to(kGpu);
  group.all_reduce_sum(values);
  group.broadcast(values);
  REQUIRE(at::equal(values.cpu(), at::arange(5, at::kFloat)));
  const auto host = at::arange(3, at::kLong);
  group.all_reduce_sum(host);
  REQUIRE((group.any(true) && group.broadcast(std::string("x")) == "x"));
  const auto gathered = group.communicator()->all_gather(values);
  REQUIRE((gathered.is_cuda() && at::equal(gathered.cpu(), at::arange(5, at::kFloat).view({1, 5}))));
}

TEST_CASE("the reducer on a GPU gives the plain gradient, bit for bit", "[.cuda]") {
  const auto plain = parameters();
  loss(plain).backward();
  Group group(Launch{}, kGpu, impatient(60, 60));
  const auto params = parameters();
  broadcast_parameters(params, group);
  GradientReducer reducer(params, group);
  for (int step = 0; step < 3; ++step) {
    for (const auto& p : params) p.mutable_grad() = at::Tensor();
    const auto l = loss(params);
    reducer.prepare(l, true);
    l.backward();
    for (size_t i = 0; i < params.size(); ++i) REQUIRE(at::equal(params[i].grad(), plain[i].grad()));
  }
}

TEST_CASE("schedule, codec and DDIM agree between GPU and CPU", "[.cuda]") {
  const ScheduleConfig config{.prediction_type = "v_prediction"};
  const auto x = keyed_normal(1, Stream::draw_noise, place_keys(0, 0, 2), {3, 4, 4});
  const auto t = at::tensor({10, 900}, at::kLong);
  const auto text = at::ones({2, 1, 2}), null = at::zeros({1, 2});
  const Predict model = [](const at::Tensor& sample, const at::Tensor&, const Conditioning& c) {
    return 0.3 * sample.tanh() + c.text.mean(at::IntArrayRef{1, 2}).view({-1, 1, 1, 1});
  };
  const NoiseSchedule host(config), device(config, kGpu);
  const auto near = [](const at::Tensor& a, const at::Tensor& b) { return at::allclose(a.cpu(), b, 1e-4, 1e-5); };
  REQUIRE(near(device.target(x.to(kGpu), x.to(kGpu) * 2, t.to(kGpu)), host.target(x, x * 2, t)));
  REQUIRE(near(device.min_snr_weight(t.to(kGpu), 5), host.min_snr_weight(t, 5)));
  REQUIRE(near(ddim_sample(device, model, x.to(kGpu), text.to(kGpu), null.to(kGpu), {}),
               ddim_sample(host, model, x, text, null, {})));
  const Codec codec{2, {0.5, 0.4, 0.3}, {0.2, 0.3, 0.4}};
  const auto bytes = at::arange(192, at::kInt).to(at::kByte).view({1, 3, 8, 8});
  REQUIRE(at::equal(codec.decode(codec.encode(bytes.to(kGpu))).cpu(), bytes));
}

}  // namespace of_test_cuda
