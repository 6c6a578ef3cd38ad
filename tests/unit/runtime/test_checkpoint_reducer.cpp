// Gradient checkpointing and the reducer together: ranks that recompute end with the gradient of one that does not.
#include <runtime/reducer.h>
#include <diffusion/models/unet/unet.h>
#include <support/process_ranks.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <catch2/catch.hpp>

namespace of_test_checkpoint_reducer {

using namespace memsieve::diffusion;
using namespace memsieve::runtime;
using namespace memsieve::testing;

namespace {

UNet2DConditionModel make_unet() {
  UNet2DConditionModel model(parse_unet_config(R"({
    "block_out_channels": [8, 16], "norm_num_groups": 4, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "attention_head_dim": 2,
    "cross_attention_dim": 6})",
                                               "small"));
  model->to(at::kDouble);
  return model;
}

at::Tensor loss_of(UNet2DConditionModel& model, int64_t first, int64_t rows) {
  const auto some = [&](std::vector<int64_t> shape) {
    const int64_t each = c10::multiply_integers(shape);
    shape.insert(shape.begin(), rows);
    return at::arange(first * each, (first + rows) * each, at::kDouble).mul(0.7).sin().view(shape);
  };
  const at::Tensor steps = at::arange(first, first + rows) * 100;
  return model->forward(some({4, 6, 5}), steps, some({3, 6})).square().mean();
}

}  // namespace

TEST_CASE("checkpointing: ranks with a reducer end with the gradient of one rank without either") {
  at::set_num_threads(1);
  at::manual_seed(1);
  auto plain = make_unet();
  loss_of(plain, 0, 4).backward();
  std::vector<UNet2DConditionModel> models = {make_unet(), make_unet()};
  std::vector<double> worst(2, -1);
  const auto errors = run_groups(2, [&](Group& group) {
    UNet2DConditionModel& model = models[group.rank()];
    model->set_gradient_checkpointing(true);
    const auto mine = model->parameters(), theirs = plain->parameters();
    {
      const at::NoGradGuard no_grad;
      for (std::size_t i = 0; i < mine.size(); ++i) mine[i].copy_(theirs[i]);
    }
    GradientReducer reducer(mine, group, 0.01);
    for (int step = 0; step < 3; ++step) {
      for (const auto& p : mine) p.mutable_grad() = at::Tensor();
      const at::Tensor loss = loss_of(model, 2 * group.rank(), 2);
      reducer.prepare(loss, true);
      loss.backward();
      for (std::size_t i = 0; i < mine.size(); ++i)
        worst[group.rank()] = std::max(
            worst[group.rank()], ((mine[i].grad() - theirs[i].grad()).norm() / theirs[i].grad().norm()).item<double>());
    }
  });
  REQUIRE(errors == no_errors(2));
  for (const double w : worst) CHECK((w >= 0 && w < 1e-10));
}

}  // namespace of_test_checkpoint_reducer
