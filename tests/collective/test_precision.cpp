// fp16 with loss scaling in whole runs: it learns, ranks agree on every overflow, and a resumed run goes on with the
// scale that it had.
#include <cmath>
#include <nlohmann/json.hpp>

#include <support/world.h>

namespace of_test_precision {

using namespace world;

namespace {

const std::string kPlain = "mixed_precision=fp16;filter=off;validation.every=0;sampling.every=0;data.held_out=;";

struct Line {
  double loss = 0, loss_scale = 0;
  bool skipped = false, nonfinite = false;
};

std::vector<Line> lines(const World& world, const std::string& run) {
  std::ifstream in(world.path(run + "/metrics.jsonl"));
  std::vector<Line> out;
  for (std::string text; std::getline(in, text);) {
    const auto json = nlohmann::json::parse(text);
    if (json["kind"] != "step") continue;
    out.push_back({json["loss"], json["loss_scale"], json["skipped"], json["nonfinite_gradient"]});
  }
  return out;
}

}  // namespace

TEST_CASE("fp16 training learns about as well as float32") {
  const World world;
  const std::string longer = "max_train_steps=40;learning_rate=0.004;lr_scheduler=constant;";
  require_done(world.train(1, "half", kPlain + longer));
  require_done(world.train(1, "full", kPlain + longer + "mixed_precision=no"));
  const auto mean_change = [&](const std::string& run) {
    const auto then = tensors(world, run, 40, kFiles[0]);
    return then.at("conv_out.weight").norm().item<double>();
  };
  CHECK(mean_change("half") == Approx(mean_change("full")).epsilon(0.02));
  const auto half = lines(world, "half");
  double early = 0, late = 0;
  for (int i = 0; i < 10; ++i) {
    early += half[i].loss / 10;
    late += half[half.size() - 1 - i].loss / 10;
  }
  CHECK(late < 0.9 * early);
  CHECK(half.back().loss_scale >= 1);
}

TEST_CASE("ranks agree on overflows, which skip the update and lower the scale until it fits") {
  const World world;
  const std::string high = "mixed_precision=fp16;loss_scale=1e12;max_nonfinite_steps=1;";
  require_done(world.train(2, "two", high + "max_train_steps=40;filter=off;validation.every=0;sampling.every=0"));
  const auto two = lines(world, "two");
  REQUIRE(two.size() == 40);
  CHECK(two[0].loss_scale == Approx(1e12));
  CHECK(two[0].skipped);
  int64_t skipped = 0;
  for (size_t i = 0; i < two.size(); ++i) {
    CHECK_FALSE(two[i].nonfinite);
    skipped += two[i].skipped ? 1 : 0;
    if (i + 1 < two.size()) CHECK(two[i + 1].loss_scale == two[i].loss_scale * (two[i].skipped ? 0.5 : 1));
  }
  CHECK((skipped > 3 && skipped < 35));
  // Adam and the moving average count what was done, not what was tried.
  const auto state = load_safetensors(world.path("two/checkpoints/step-000040/optimizer.safetensors"));
  CHECK(state.at("updates").item<double>() == static_cast<double>(40 - skipped));
  for (const auto& [name, tensor] : state) {
    INFO(name);
    CHECK(at::isfinite(tensor).all().item<bool>());
  }
}

TEST_CASE("a resumed fp16 run equals an uninterrupted one bit for bit") {
  const World world;
  const std::string growing = "mixed_precision=fp16;train_batch_size=2;loss_scale=1e9;loss_scale_growth_interval=4;";
  require_done(world.train(2, "whole", growing));
  require_done(world.train(2, "parts", growing + "max_train_steps=6"));
  require_done(world.train(2, "parts", growing + "resume_from_checkpoint=latest"));
  for (const auto& file : kFiles) {
    INFO(file);
    check_equal(tensors(world, "whole", 12, file), tensors(world, "parts", 12, file));
  }
  CHECK(metrics(world, "whole") == metrics(world, "parts"));
  const double now = tensors(world, "whole", 12, kFiles[2]).at("loss_scale").item<double>();
  CHECK(now != 1e9);
}

}  // namespace of_test_precision
