// Pictures as extractors want them, and TorchScript modules that answer what they must not.
#include <ATen/ATen.h>
#include <audit/measure/extractor.h>
#include <memsieve/error.h>
#include <support/files.h>
#include <torch/csrc/jit/api/module.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>

namespace of_test_extractor {

using namespace memsieve;
using namespace memsieve::audit;
using Catch::Matchers::Contains;

namespace {

/// A module whose forward(x) is `body`, saved.
std::string module_file(const testing::TemporaryFolder& scratch, const std::string& body) {
  torch::jit::Module module("m");
  module.define("def forward(self, x):\n  " + body + "\n");
  const std::string path = scratch.file("module.pt");
  module.save(path);
  return path;
}

Extractor loaded(const std::string& path) {
  const at::Tensor example = at::arange(2 * 3 * 20 * 20).remainder(251).to(at::kByte).view({2, 3, 20, 20});
  return {"--sscd", path, preset_named("clip"), example, at::kCPU};
}

}  // namespace

TEST_CASE("a plain picture keeps its colour whatever the preset, and has the preset's size") {
  const at::Tensor colour = at::tensor({10, 128, 255}, at::kByte).view({1, 3, 1, 1});
  for (const Preset& preset : presets()) {
    const at::Tensor found = preprocessed(colour.expand({2, 3, 40, 60}), preset);
    const int64_t height = preset.crop > 0 ? preset.crop : preset.size;
    CHECK(found.sizes().vec() ==
          std::vector<int64_t>{2, 3, height, preset.crop > 0 || preset.square ? height : height * 3 / 2});
    for (size_t c = 0; c < 3; ++c) {
      const double value = colour.view(-1)[static_cast<int64_t>(c)].item<double>();
      const at::Tensor channel = found.select(1, static_cast<int64_t>(c));
      CHECK(channel.min().item<double>() == Approx((value / 255 - preset.mean[c]) / preset.std[c]).margin(1e-5));
      CHECK(channel.max().item<double>() == Approx(channel.min().item<double>()).margin(1e-6));
    }
  }
}

TEST_CASE("a pattern finer than the result is averaged, not sampled") {
  const at::Tensor board = ((at::arange(448).view({-1, 1}) + at::arange(448)).remainder(2) * 255).to(at::kByte);
  const Preset& clip = preset_named("clip");
  const at::Tensor found = preprocessed(board.expand({1, 3, 448, 448}), clip).select(1, 0);
  CHECK(((found * clip.std[0] + clip.mean[0]) * 255 - 127.5).abs().max().item<double>() < 4);
}

TEST_CASE("the middle is cut out") {
  at::Tensor picture = at::zeros({1, 3, 224, 424}, at::kByte);
  picture.narrow(3, 100, 224).fill_(255);
  const at::Tensor found = preprocessed(picture, preset_named("clip"));
  CHECK(found.sizes().vec() == std::vector<int64_t>{1, 3, 224, 224});
  CHECK(found.select(1, 0).min().item<double>() > 1.9);
}

TEST_CASE("features have length 1, scores are as they are") {
  const testing::TemporaryFolder scratch;
  const at::Tensor pictures = at::randint(256, {5, 3, 20, 20}, at::kByte);
  const Extractor features = loaded(module_file(scratch, "return x.mean([2, 3])"));
  CHECK(features.width() == 3);
  const at::Tensor found = features.features(pictures);
  CHECK(at::allclose(found.norm(2, {1}), at::ones({5})));
  const at::Tensor expected = preprocessed(pictures, preset_named("clip")).mean({2, 3});
  CHECK(at::allclose(found, expected / expected.norm(2, {1}, true), 1e-4, 1e-5));
  const Extractor scores = loaded(module_file(scratch, "return x.mean([1, 2, 3]) * 7"));
  CHECK(at::allclose(scores.scores(pictures), expected.mean(1) * 7, 1e-4, 1e-5));
}

TEST_CASE("a module that answers anything else is refused in a line that says what") {
  const testing::TemporaryFolder scratch;
  const std::pair<std::string, std::string> cases[] = {
      {"return x", "not a row for each"},
      {"return x.mean([2, 3])[:1]", "not a row for each"},
      {"return x.mean()", "not a row for each"},
      {"return (x, x)", "one tensor"},
      {"return x.long().sum([2, 3])", "one tensor"},
      {"return x.mean([2, 3]) / 0 * 0", "NaN or Inf"},
      {"return x.view(7)", "does not take pictures [2, 3, 224, 224]"},
  };
  for (const auto& [body, said] : cases) {
    const std::string path = module_file(scratch, body);
    try {
      loaded(path);
      FAIL(body << " was taken");
    } catch (const DataError& error) {
      const std::string text = error.what();
      CHECK_THAT(text, Contains(said) && Contains(path));
      CHECK(text.find('\n') == std::string::npos);
    }
  }
  const std::string text = scratch.file("no_module.pt");
  std::ofstream(text) << "PK not";
  CHECK_THROWS_WITH(loaded(text), Contains("no TorchScript module"));
  CHECK_THROWS_AS(loaded(scratch.file("absent.pt")), ConfigError);
}

}  // namespace of_test_extractor
