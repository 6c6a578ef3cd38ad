// Runs that forget: the number of ranks does not matter, a resumed run equals an uninterrupted one, what is forgotten
// is lost, and where nothing is subtracted nothing changes.
#include <nlohmann/json.hpp>

#include <support/world.h>

namespace of_test_forget {

using namespace world;

namespace {

/// A world with three pictures to forget.
struct Forgetting : World {
  Forgetting() {
    auto pictures = testing::write_pictures(path("forget.h5"), 3);
    pictures.replace("/images", testing::some_images(12).slice(0, 9).add(37));
    pictures.attribute("/images", "mean", std::vector<double>{0.5, 0.4, 0.3});
    pictures.attribute("/images", "std", std::vector<double>{0.25, 0.3, 0.35});
    pictures.attribute("/images", "pixel_unshuffle", int64_t{2});
  }
  /// The section, and no looks aside.
  std::string section() const { return "forget.data=" + path("forget.h5") + ";validation.every=0;sampling.every=0;"; }
};

std::vector<double> numbers(const World& world, const std::string& run, const std::string& key) {
  std::ifstream in(world.path(run + "/metrics.jsonl"));
  std::vector<double> out;
  for (std::string text; std::getline(in, text);) {
    const auto json = nlohmann::json::parse(text);
    if (json["kind"] == "step") out.push_back(json.at(key));
  }
  return out;
}

double mean(const std::vector<double>& values, size_t first, size_t last) {
  double sum = 0;
  for (size_t i = first; i < last; ++i) sum += values.at(i);
  return sum / static_cast<double>(last - first);
}

}  // namespace

TEST_CASE("any number of ranks forgets the same, with the sieve and without") {
  const Forgetting world;
  const std::string sieve = GENERATE("sieve.probe.kind=every;sieve.block_rows=1;", "filter=off;data.held_out=;");
  for (const auto& [run, ranks, rows, micro] : std::vector<std::tuple<std::string, int, int, int>>{
           {"one", 1, 8, 1}, {"parts", 1, 4, 2}, {"two", 2, 2, 2}, {"four", 4, 2, 1}}) {
    // A large epsilon: where a gradient is all but 0, Adam would blow rounding errors up to whole steps.
    require_done(world.train(ranks, run,
                             world.section() + sieve + "adam_epsilon=0.01;gradient_accumulation_steps=" +
                                 std::to_string(micro) + ";train_batch_size=" + std::to_string(rows)));
  }
  const auto one = tensors(world, "one", 12, kFiles[0]);
  for (const char* other : {"parts", "two", "four"}) {
    INFO(other);
    for (const auto& [name, tensor] : tensors(world, other, 12, kFiles[0])) {
      INFO(name);
      CHECK(at::allclose(tensor, one.at(name), 1e-3, 2e-5));
    }
    for (const char* key : {"forget_loss", "forget_weight"}) {
      const auto expected = numbers(world, "one", key), found = numbers(world, other, key);
      REQUIRE(found.size() == 12);
      for (size_t i = 0; i < 12; ++i) CHECK(found[i] == Approx(expected[i]).epsilon(1e-3));
    }
  }
  if (sieve[0] == 's') CHECK(sum_of(metrics(world, "one"), "dropped") > 0);
}

TEST_CASE("a resumed run that forgets equals an uninterrupted one bit for bit") {
  const Forgetting world;
  const std::string how =
      GENERATE("", "mixed_precision=bf16;filter=off;", "mixed_precision=fp16;filter=off;data.prefetch=0;",
               "lora.rank=2;filter=off;snr_gamma=5;");
  const std::string all = world.section() + how + "train_batch_size=2;";
  require_done(world.train(2, "whole", all));
  require_done(world.train(2, "halves", all + "max_train_steps=6"));
  require_done(world.train(2, "halves", all + "resume_from_checkpoint=latest"));
  const std::string lora = "lora/pytorch_lora_weights.safetensors";
  check_equal(tensors(world, "whole", 12, how[0] == 'l' ? lora : kFiles[0]),
              tensors(world, "halves", 12, how[0] == 'l' ? lora : kFiles[0]));
  check_equal(tensors(world, "whole", 12, kFiles[2]), tensors(world, "halves", 12, kFiles[2]));
  CHECK(metrics(world, "whole") == metrics(world, "halves"));
}

TEST_CASE("a share of 0 trains as if nothing were to be forgotten, bit for bit") {
  const Forgetting world;
  const std::string plain = "validation.every=0;sampling.every=0;gradient_accumulation_steps=2;train_batch_size=2;";
  require_done(world.train(2, "without", plain));
  require_done(world.train(2, "with", world.section() + plain + "forget.share=0"));
  for (const auto& file : kFiles) {
    INFO(file);
    check_equal(tensors(world, "without", 12, file), tensors(world, "with", 12, file));
  }
  CHECK(metrics(world, "without").find("forget") == std::string::npos);
  CHECK(numbers(world, "with", "loss") == numbers(world, "without", "loss"));
}

TEST_CASE("what is forgotten is lost, and the rest is kept") {
  const Forgetting world;
  const std::string plain =
      "filter=off;data.held_out=;learning_rate=0.004;adam_epsilon=0.0001;train_batch_size=8;max_train_steps=60;";
  require_done(world.train(1, "with", world.section() + plain + "forget.share=0.7"));
  require_done(world.train(1, "without", world.section() + plain + "forget.share=0"));
  const auto last = [&](const std::string& run, const std::string& key) {
    return mean(numbers(world, run, key), 40, 60);
  };
  CHECK(last("with", "forget_loss") > 1.1 * last("without", "forget_loss"));
  CHECK(last("with", "loss") < 1.1 * mean(numbers(world, "with", "loss"), 0, 5));
}

}  // namespace of_test_forget
