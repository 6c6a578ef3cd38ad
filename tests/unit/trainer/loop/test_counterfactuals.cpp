// Rows that ride along in other rows' forwards get the answers that they would get alone.
#include <ATen/ATen.h>
#include <torch/nn/module.h>
#include <trainer/loop/counterfactuals.h>

#include <catch2/catch.hpp>

namespace of_test_counterfactuals {

using namespace memsieve;
using namespace memsieve::trainer;

namespace {

/// Answers each row by itself, so that answers do not depend on the rows beside it.
class RowByRow : public Denoiser {
 public:
  RowByRow(double factor, int64_t& calls) : factor_(factor), calls_(calls) {}
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) override {
    ++calls_;
    return sample * factor_ + (timestep + condition.text.sum({1, 2})).view({-1, 1, 1, 1});
  }
  torch::nn::Module& module() override { return module_; }
  std::string component() const override { return "unet"; }
  void set_gradient_checkpointing(bool) override {}
  void check_takes(const RowShape&, const std::string&) const override {}
  void save(const std::string&) override {}

 private:
  double factor_;
  int64_t& calls_;
  torch::nn::Module module_;
};

NoisyRows rows(int64_t count, double first) {
  const at::Tensor index = at::arange(count).to(at::kFloat) + first;
  return {.ids = at::arange(count),
          .timestep = at::arange(count) * 10,
          .noisy = index.view({-1, 1, 1, 1}).expand({count, 1, 2, 2}).contiguous(),
          .target = at::zeros({count, 1, 2, 2}),
          .condition = Conditioning(index.view({-1, 1, 1}).expand({count, 3, 2}) * 100),
          .captioned = at::ones({count}, at::kBool)};
}

}  // namespace

TEST_CASE("held-out rows and looks that ride along get the answers that they would get alone") {
  const bool with_held_out = GENERATE(true, false), with_looks = GENERATE(true, false);
  if (!with_held_out && !with_looks) return;
  int64_t calls = 0, start_calls = 0;
  Model model(std::make_unique<RowByRow>(2, calls), {});
  StartingModel start(std::make_unique<Model>(std::make_unique<RowByRow>(3, start_calls), ModelOptions{}));
  const Conditioning empty(at::full({3, 2}, 7.)), empty_held_out(at::full({3, 2}, 8.));
  const NoisyRows training = rows(4, 1), held_out = rows(3, 20), looks = rows(2, 40);
  const auto alone = [&](const NoisyRows& of, const at::Tensor& which, double factor, const Conditioning* null) {
    const Conditioning condition = of.condition.select(which);
    const at::Tensor text = (null != nullptr ? condition.uncaptioned(*null) : condition).text;
    return of.noisy.index_select(0, which) * factor +
           (of.timestep.index_select(0, which) + text.sum({1, 2})).view({-1, 1, 1, 1});
  };
  const auto pick = [](std::vector<int64_t> which) { return at::tensor(which, at::kLong); };

  Counterfactuals asked(model, &start);
  asked.await(with_held_out ? std::optional(held_out) : std::nullopt, with_looks ? std::optional(looks) : std::nullopt);
  auto of_training = asked.of(training, empty);
  CHECK(at::equal(of_training["null"](pick({3, 1})), alone(training, pick({3, 1}), 2, &empty)));
  CHECK(at::equal(of_training["start"](pick({0, 2})), alone(training, pick({0, 2}), 3, nullptr)));
  const at::Tensor awaited = asked.awaited();
  const int64_t first_look = with_held_out ? 3 : 0;
  REQUIRE((calls == 1 && start_calls == 1));
  if (with_held_out) {
    CHECK(at::equal(awaited.slice(0, 0, 3), alone(held_out, at::arange(3), 2, nullptr)));
    auto of_held_out = asked.of_held_out(empty_held_out, empty);
    CHECK(at::equal(of_held_out["null"](pick({2})), alone(held_out, pick({2}), 2, &empty_held_out)));
    CHECK(at::equal(of_held_out["start"](pick({2, 0})), alone(held_out, pick({2, 0}), 3, nullptr)));
  }
  if (with_looks) {
    CHECK(at::equal(awaited.slice(0, first_look), alone(looks, at::arange(2), 2, nullptr)));
    auto of_looks = asked.of_looks(empty);
    CHECK(at::equal(of_looks["null"](at::arange(2)), alone(looks, at::arange(2), 2, &empty)));
    CHECK(at::equal(of_looks["start"](pick({1})), alone(looks, pick({1}), 3, nullptr)));
  }
  // Nulls of both in one forward; the starting model's answers are there already.
  CHECK((calls == 2 && start_calls == 1));
}

}  // namespace of_test_counterfactuals
