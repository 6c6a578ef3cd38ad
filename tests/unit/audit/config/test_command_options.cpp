// Flags of the command line and keys of the YAML file are one thing.
#include <audit/config/audit_config.h>
#include <audit/config/command_options.h>
#include <memsieve/error.h>
#include <support/files.h>

#include <catch2/catch.hpp>

namespace of_test_command_options {

using namespace memsieve;
using namespace memsieve::audit;

namespace {

Options some_options() {
  Options options;
  options.text("some_text", "", "a text")
      .boolean("on", false, "a switch")
      .integer("count", 3, 0, 10, "a number")
      .texts("words", {"a"}, "several");
  return options;
}

Settings settings_of(const std::vector<std::string>& words) {
  return some_options().settings(words, "test");
}

}  // namespace

TEST_CASE("flags set keys, and what is not given has its default") {
  const Settings s = settings_of({"--some-text", "/a path: with # signs", "--on", "--count=7"});
  CHECK(s.text("some_text") == "/a path: with # signs");
  CHECK(s.boolean("on"));
  CHECK(s.integer("count") == 7);
  CHECK(s.texts("words") == std::vector<std::string>{"a"});
  CHECK_FALSE(settings_of({"--on=false"}).boolean("on"));
  CHECK_FALSE(settings_of({"--on", "false"}).boolean("on"));
  CHECK(settings_of({"--on", "--count", "7"}).boolean("on"));
  CHECK(settings_of({"--words", "x, y", "--words", "z"}).texts("words") == std::vector<std::string>{"x, y", "z"});
  CHECK(settings_of({"--set", "count=4"}).integer("count") == 4);
}

TEST_CASE("a YAML file gives the same keys, and flags win over it") {
  const testing::TemporaryFolder scratch;
  const std::string file = scratch.file("audit.yaml");
  std::ofstream(file) << "some_text: from a file\ncount: 2\n";
  const Settings s = settings_of({"--config", file, "--count", "5"});
  CHECK((s.text("some_text") == "from a file" && s.integer("count") == 5));
  std::ofstream(file) << "cuont: 2\n";
  CHECK_THROWS_WITH(settings_of({"--config", file}), Catch::Matchers::Contains("did you mean 'count'"));
}

TEST_CASE("what is wrong with flags is a ConfigError that names the flag") {
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(settings_of({"--nothing", "1"}), Contains("nothing") && Contains("test --help"));
  CHECK_THROWS_WITH(settings_of({"--count", "eleven"}), Contains("count"));
  CHECK_THROWS_WITH(settings_of({"--count", "11"}), Contains("count"));
  CHECK_THROWS_WITH(settings_of({"--count", "1", "--count", "2"}), Contains("count") && Contains("twice"));
  CHECK_THROWS_AS(settings_of({"word"}), ConfigError);
}

TEST_CASE("help names every flag with its default") {
  const std::string help = some_options().help();
  for (const char* text : {"--some-text", "--on", "--count", "--words", "--config", "default: 3"})
    CHECK(help.find(text) != std::string::npos);
}

TEST_CASE("a command needs model, prompts and out") {
  Options options;
  add_common_options(options, Asks::drawings);
  const auto audit = [&](std::vector<std::string> words) {
    return audit_config("detect", options.settings(words, "detect"), Asks::drawings);
  };
  const AuditConfig c = audit({"--model", "m", "--prompts", "p", "--out", "o", "--mixed-precision", "bf16"});
  CHECK((c.model == "m" && c.prompts == "p" && c.out == "o" && c.autocast == at::kBFloat16));
  using Catch::Matchers::Contains;
  CHECK_THROWS_WITH(audit({"--prompts", "p", "--out", "o"}), Contains("model"));
  CHECK_THROWS_WITH(audit({"--model", "m", "--out", "o"}), Contains("prompts"));
  CHECK_THROWS_WITH(audit({"--model", "m", "--prompts", "p"}), Contains("out"));
  CHECK_THROWS_WITH(audit({"--model", "m", "--prompts", "p", "--out", "o", "--guidance-scale", "0.5"}),
                    Contains("guidance_scale"));
}

}  // namespace of_test_command_options
