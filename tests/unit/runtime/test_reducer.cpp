// The gradient reducer: the mean over ranks, whatever is accumulated, and one rank like many.
#include <runtime/reducer.h>
#include <support/process_ranks.h>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/variable.h>
#include <catch2/catch.hpp>
#include <mutex>

namespace of_test_reducer {

using namespace memsieve::runtime;
using namespace memsieve::testing;

namespace {

// A small network whose parameters fill several buckets.
struct Network {
  std::vector<at::Tensor> params;

  explicit Network(double offset = 0) {
    for (int i = 0; i < 5; ++i)
      params.push_back((at::arange(36, at::kFloat).view({6, 6}).sin() / 3 + offset).set_requires_grad(true));
  }
  at::Tensor loss(const at::Tensor& rows) const {
    at::Tensor x = rows;
    for (const auto& p : params) x = x.matmul(p).tanh();
    return x.square().sum(1);
  }
};

at::Tensor rows(int64_t first, int64_t count) {
  return at::arange(first * 6, (first + count) * 6, at::kFloat).cos().view({count, 6});
}

std::vector<at::Tensor> grads(const Network& network) {
  std::vector<at::Tensor> result;
  for (const auto& p : network.params) result.push_back(p.grad().clone());
  return result;
}

double difference(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, (a[i] - b[i]).abs().max().item<double>());
  return worst;
}

// One rank, no reducer: mean over all rows.
std::vector<at::Tensor> plain(int64_t count) {
  const Network network;
  network.loss(rows(0, count)).mean().backward();
  return grads(network);
}

}  // namespace

TEST_CASE("the gradient is the mean over ranks, accumulated or not, in every step") {
  for (const int world : {1, 2, 3}) {
    const int64_t micro = 2, per_rank = 4, total = world * micro * per_rank;
    const auto expected = plain(total);
    std::vector<double> worst(world, -1);
    const auto errors = run_groups(world, [&](Group& group) {
      const Network network;
      GradientReducer reducer(network.params, group, 0.0005);
      for (int step = 0; step < 4; ++step) {  // buckets are rebuilt after the first
        for (const auto& p : network.params) p.mutable_grad() = at::Tensor();
        for (int64_t m = 0; m < micro; ++m) {
          const auto loss = network.loss(rows((m * world + group.rank()) * per_rank, per_rank)).mean() / micro;
          reducer.prepare(loss, m + 1 == micro);
          loss.backward();
        }
        worst[group.rank()] = std::max(worst[group.rank()], difference(grads(network), expected));
      }
    });
    REQUIRE(errors == no_errors(world));
    for (const double w : worst) CHECK((w >= 0 && w < 1e-6));
  }
}

TEST_CASE("gradients may be zeroed in place between steps") {
  const auto expected = plain(8);
  std::vector<double> worst(2, -1);
  const auto errors = run_groups(2, [&](Group& group) {
    const Network network;
    GradientReducer reducer(network.params, group, 25);
    for (int step = 0; step < 3; ++step) {
      for (const auto& p : network.params)
        if (p.grad().defined()) p.mutable_grad().zero_();
      const auto loss = network.loss(rows(4 * group.rank(), 4)).mean();
      reducer.prepare(loss, true);
      loss.backward();
      worst[group.rank()] = std::max(worst[group.rank()], difference(grads(network), expected));
    }
  });
  REQUIRE(errors == no_errors(2));
  for (const double w : worst) CHECK((w >= 0 && w < 1e-6));
}

TEST_CASE("with one rank the gradient is that of the plain loop, bit for bit") {
  const auto expected = plain(8);
  Group group(Launch{}, c10::kCPU, impatient());
  const Network network;
  GradientReducer reducer(network.params, group);
  REQUIRE(reducer.bytes() == 5 * 36 * 4);
  for (int step = 0; step < 3; ++step) {
    for (const auto& p : network.params) p.mutable_grad() = at::Tensor();
    const auto loss = network.loss(rows(0, 8)).mean();
    reducer.prepare(loss, true);
    loss.backward();
    REQUIRE(difference(grads(network), expected) == 0);
  }
}

TEST_CASE("without sync nothing is communicated") {
  // Rank 0 runs backward alone; a collective would wait for rank 1 and fail.
  std::vector<double> worst(2, 0);
  const auto errors = run_groups(2, [&](Group& group) {
    const Network network;
    GradientReducer reducer(network.params, group);
    if (group.rank() == 0) {
      const auto loss = network.loss(rows(0, 4)).mean();
      reducer.prepare(loss, false);
      loss.backward();
      worst[0] = difference(grads(network), plain(4));
    }
    group.barrier();
  });
  REQUIRE(errors == no_errors(2));
  REQUIRE(worst[0] == 0);
}

TEST_CASE("a reducer that is gone leaves its parameters alone") {
  Group group(Launch{}, c10::kCPU, impatient());
  const Network network;
  { GradientReducer reducer(network.params, group); }
  network.loss(rows(0, 8)).mean().backward();
  REQUIRE(difference(grads(network), plain(8)) == 0);
}

TEST_CASE("parameters start as rank 0's") {
  std::vector<double> worst(3, -1);
  const auto errors = run_groups(3, [&](Group& group) {
    const Network network(group.rank());
    std::vector<at::Tensor> all = network.params;
    // A convolution's weight in channels-last order is not contiguous, and keeps its strides.
    const auto conv = (at::arange(2 * 3 * 4 * 4, at::kFloat).view({2, 3, 4, 4}) + group.rank())
                          .contiguous(at::MemoryFormat::ChannelsLast);
    all.push_back(conv);
    broadcast_parameters(all, group);
    worst[group.rank()] = difference(network.params, Network().params);
    if (!conv.is_contiguous(at::MemoryFormat::ChannelsLast) || conv.flatten()[7].item<float>() != 7)
      throw std::logic_error("convolution");
  });
  REQUIRE(errors == no_errors(3));
  REQUIRE(worst == std::vector<double>(3, 0));
}

TEST_CASE("different parameters are an error on every rank") {
  const auto errors = run_groups(2, [&](Group& group) {
    Network network;
    if (group.rank() == 1) network.params.pop_back();
    GradientReducer reducer(network.params, group);
  });
  for (const auto& error : errors)
    CHECK_THAT(error,
               Catch::StartsWith("PeerError: reducer: the ranks hold different parameters") && !Catch::Contains("\n"));
}

TEST_CASE("a loss without gradient is refused") {
  Group group(Launch{}, c10::kCPU, impatient());
  const Network network;
  GradientReducer reducer(network.params, group);
  REQUIRE_THROWS_AS(reducer.prepare(at::zeros({}), true), memsieve::ConfigError);
  REQUIRE_THROWS_AS(GradientReducer(network.params, group, 0), memsieve::ConfigError);
}

}  // namespace of_test_reducer
