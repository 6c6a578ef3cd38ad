// The gradient of a step that forgets: what it is of its two parts, whatever their units.
#include <ATen/ATen.h>
#include <trainer/optim/forget_gradient.h>
#include <trainer/optim/optimizer.h>

#include <catch2/catch.hpp>
#include <limits>

namespace of_test_forget_gradient {

using namespace memsieve::trainer;

namespace {

struct Parts {
  explicit Parts(double keep_scale = 1, double forget_scale = 1) {
    at::manual_seed(3);
    for (const auto& shape : std::vector<std::vector<int64_t>>{{4, 3}, {7}, {2, 2, 3, 3}}) {
      parameters.push_back(at::zeros(shape).requires_grad_(true));
      keep.push_back(keep_scale * at::randn(shape));
      forget.push_back(forget_scale * at::randn(shape));
      parameters.back().mutable_grad() = forget.back().clone();
    }
  }

  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> out;
    for (const auto& p : parameters) out.push_back(p.grad());
    return out;
  }

  std::vector<at::Tensor> parameters, keep, forget;
};

}  // namespace

TEST_CASE("what is subtracted points along the gradient to forget and has the asked share of the other's norm") {
  Parts parts;
  const double share = GENERATE(0.1, 1.0, 3.0);
  const double k = subtract_forget_gradient(parts.parameters, parts.keep, share).item<double>();
  std::vector<at::Tensor> subtracted;
  for (size_t i = 0; i < parts.keep.size(); ++i) {
    subtracted.push_back(parts.keep[i] - parts.parameters[i].grad());
    CHECK(at::allclose(subtracted[i], k * parts.forget[i], 1e-4, 1e-6));
  }
  CHECK(total_norm(subtracted).item<double>() == Approx(share * total_norm(parts.keep).item<double>()).epsilon(1e-5));
}

TEST_CASE("the units of either side do not matter") {
  Parts plain, scaled(1, 1024);
  subtract_forget_gradient(plain.parameters, plain.keep, 0.1);
  subtract_forget_gradient(scaled.parameters, scaled.keep, 0.1);
  for (size_t i = 0; i < plain.keep.size(); ++i)
    CHECK(at::allclose(plain.parameters[i].grad(), scaled.parameters[i].grad(), 1e-5, 1e-7));
  Parts larger(256);
  subtract_forget_gradient(larger.parameters, larger.keep, 0.1);
  for (size_t i = 0; i < plain.keep.size(); ++i)
    CHECK(at::allclose(256 * plain.parameters[i].grad(), larger.parameters[i].grad(), 1e-5, 1e-5));
}

TEST_CASE("a share of 0 leaves the gradient to keep as it was, bit for bit") {
  Parts parts;
  CHECK(subtract_forget_gradient(parts.parameters, parts.keep, 0).item<double>() == 0);
  for (size_t i = 0; i < parts.keep.size(); ++i) CHECK(at::equal(parts.parameters[i].grad(), parts.keep[i]));
}

TEST_CASE("nothing to forget is no division by 0, and what is not finite stays so") {
  Parts nothing(1, 0);
  CHECK(subtract_forget_gradient(nothing.parameters, nothing.keep, 0.1).item<double>() == 0);
  for (size_t i = 0; i < nothing.keep.size(); ++i) CHECK(at::equal(nothing.parameters[i].grad(), nothing.keep[i]));
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    Parts parts;
    parts.parameters[1].mutable_grad()[2] = bad;
    subtract_forget_gradient(parts.parameters, parts.keep, 0.1);
    CHECK_FALSE(total_norm(parts.gradients()).isfinite().item<bool>());
  }
}

TEST_CASE("gradients that are taken are copies, and the next backward begins anew") {
  const at::Tensor x = at::ones({2}).requires_grad_(true);
  const at::Tensor bucket = at::full({2}, 5.0);
  x.mutable_grad() = bucket.view({2});
  const auto taken = take_gradients({x});
  CHECK_FALSE(x.grad().defined());
  bucket.fill_(7);
  CHECK(at::equal(taken[0], at::full({2}, 5.0)));
  (3 * x).sum().backward();
  CHECK(at::equal(x.grad(), at::full({2}, 3.0)));
}

}  // namespace of_test_forget_gradient
