#include <memsieve/memsieve.h>

#include <catch2/catch.hpp>  // after torch, whose logging defines a CHECK of its own

namespace of_test_schema {

using memsieve::ConfigError;
using memsieve::resolve;
using memsieve::Schema;

namespace {

Schema sample() {
  Schema filter, root;
  filter.real("threshold", 2, 0, 10, "level").choice("norm", "l2", {"l2", "rms"}, "norm");
  Schema filters;
  filters.optional_section("magnitude", filter, "a filter");
  root.integer("seed", 7, 0, 100, "seed")
      .boolean("ema", true, "average")
      .text("name", "", "a name")
      .texts("files", {}, "files")
      .reals("betas", {0.9, 0.999}, "betas")
      .section("filters", filters, "filters");
  return root;
}

std::string error_of(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
  try {
    resolve(yaml, "run.yaml", sample(), overrides);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("errors name file, line, key and remedy", "[schema]") {
  CHECK(error_of("seed: 1\nfilters:\n  magnitude:\n    treshold: 3\n") ==
        "run.yaml:4: filters.magnitude.treshold: unknown key; did you mean 'threshold'?");
  CHECK(error_of("seed: 101") == "run.yaml:1: seed: 101 is out of range; it must lie in [0, 100]");
  CHECK(error_of("\nseed: many") == "run.yaml:2: seed: expected integer, got 'many'");
  CHECK(error_of("filters: {magnitude: {norm: l1}}") ==
        "run.yaml:1: filters.magnitude.norm: unknown value 'l1'; did you mean 'l2'?");
  CHECK(error_of("filters: {magnitude: {threshold: .nan}}").find("out of range") != std::string::npos);
  CHECK(error_of("filters: 3") == "run.yaml:1: filters: expected a mapping");
  CHECK(error_of("- a") == "run.yaml:1: expected a mapping of keys to values");
  CHECK(error_of("seed: 1\nseed: 2").find("key given twice") != std::string::npos);
  CHECK(error_of("a: [").find("run.yaml:1: not valid YAML") == 0);
  CHECK(error_of("seed: [1]") == "run.yaml:1: seed: expected integer, got a list or mapping");
  CHECK(error_of("zzzzzzz: 1").find("known keys: seed, ema") != std::string::npos);
}

TEST_CASE("a comma in the place of a value ends in an error, not never", "[schema]") {
  for (const std::string text : {", b", ",", "[a], b", "a: 1\n---\n, c"})
    CHECK(error_of(text).find("a second YAML document") != std::string::npos);
  CHECK(error_of("seed: 1", {"name=, b"}).find("--set name=, b:1: a second YAML document") == 0);
}

TEST_CASE("what cannot be a key, or a number, is refused like any other mistake", "[schema]") {
  CHECK(error_of("[a, b]: 1") == "run.yaml:1: ?: a list or mapping cannot be a key; write plain text");
  CHECK(error_of("filters: {magnitude: {? {a: 1} : 2}}").find("filters.magnitude.?: a list or mapping") !=
        std::string::npos);
  const Schema sizes = Schema().integers("sizes", {}, "sizes");
  CHECK_THROWS_WITH(resolve("sizes: [1, 9223372036854775807]", "run.yaml", sizes),
                    "run.yaml:1: sizes: 9223372036854775807 is out of range; it must lie in [-2^53, 2^53]");
  CHECK(resolve("sizes: [9007199254740992]", "run.yaml", sizes).integers("sizes") ==
        std::vector<int64_t>{9007199254740992});
}

TEST_CASE("an error is one line that a terminal can show, whatever the file holds", "[schema]") {
  CHECK(error_of("seed: \"a\\nb\\e[31m\"") == "run.yaml:1: seed: expected integer, got 'a?b?[31m'");
  CHECK(error_of("\"a\\nb\": 1").find("run.yaml:1: a?b: unknown key") == 0);
  CHECK(error_of("filters: {magnitude: {norm: \"\\x7f\"}}").find("unknown value '?'") != std::string::npos);
  CHECK(error_of("", {"a\nb=1"}).find("--set a?b=1: a?b: unknown key") == 0);
}

TEST_CASE("overrides win over the file and are named in errors", "[schema]") {
  const auto s = resolve("seed: 1", "run.yaml", sample(), {"seed=5", "filters.magnitude.norm=rms", "files=[a, b]"});
  CHECK(s.integer("seed") == 5);
  CHECK(s.section("filters").section("magnitude").text("norm") == "rms");
  CHECK(s.texts("files") == std::vector<std::string>{"a", "b"});
  CHECK(error_of("seed: 1", {"filters.magnitude.nrm=l2"}) ==
        "--set filters.magnitude.nrm=l2: filters.magnitude.nrm: unknown key; did you mean 'norm'?");
  CHECK(error_of("seed: 1", {"seed"}) == "--set seed: expected key.subkey=value");
  CHECK(error_of("seed: 1", {"seed.x=1"}) == "--set seed.x=1: seed is not a mapping");
}

TEST_CASE("optional sections are there only if named; defaults fill the rest", "[schema]") {
  const auto without = resolve("", "run.yaml", sample());
  CHECK(without.section("filters").present().empty());
  CHECK(without.integer("seed") == 7);
  CHECK_FALSE(without.has("seed"));
  const auto with = resolve("filters: {magnitude: }", "run.yaml", sample());
  CHECK(with.section("filters").present() == std::vector<std::string>{"magnitude"});
  CHECK(with.real("filters.magnitude.threshold") == 2);
  CHECK_THROWS_AS(with.real("filters.magnitude.nothing"), std::logic_error);
}

TEST_CASE("the printed configuration resolves to itself", "[schema]") {
  const auto s = resolve("seed: 3\nname: 'a: b'\nfilters: {magnitude: {threshold: 0.1}}", "run.yaml", sample());
  const auto again = resolve(s.yaml(), "printed", sample());
  CHECK(again.yaml() == s.yaml());
  CHECK(again.text("name") == "a: b");
  CHECK(again.real("filters.magnitude.threshold") == 0.1);
}

namespace {

/// sample() of another version: `seed` and a section do not bind.
Schema versioned() {
  Schema filter, report, root;
  filter.real("threshold", 2, 0, 10, "level").choice("norm", "l2", {"l2", "rms"}, "norm");
  report.integer("every", 5, 1, 100, "steps");
  root.integer("seed", 7, 0, 100, "seed")
      .incidental()
      .real("rate", 0.5, 0, 1, "rate")
      .text("folder", "", "where")
      .section("report", report, "reports")
      .incidental()
      .optional_section("magnitude", filter, "a filter");
  return root;
}

/// What differs now from the saved text, as one line; "" for nothing.
std::string difference(const std::string& now, const std::string& saved,
                       memsieve::Keys keys = memsieve::Keys::binding) {
  const auto found = resolve(now, "run.yaml", versioned()).difference_from(saved, "state.json", keys);
  return found ? found->line() : "";
}

}  // namespace

TEST_CASE("a saved configuration is compared by its values, not by its text", "[schema]") {
  CHECK(difference("rate: 0.25", "rate: 0.25\nfolder: ''\n").empty());
  CHECK(difference("rate: 0.25", "{folder: , rate: 2.5e-1}").empty());
  CHECK(difference("rate: 0.333333333333333333", "rate: 0.333333333333333").empty());
  CHECK(difference("rate: 0.25", "rate: 0.125") == "`rate: 0.25` / `rate: 0.125`");
  CHECK(difference("magnitude: {norm: rms}", "magnitude: {norm: l2}") ==
        "`magnitude.norm: rms` / `magnitude.norm: l2`");
  CHECK(difference("magnitude: {}", "rate: 0.5") == "`magnitude: (given)` / `magnitude: (not given)`");
  CHECK(difference("", "magnitude: {norm: l2}") == "`magnitude: (not given)` / `magnitude: (given)`");
}

TEST_CASE("keys that a saved configuration lacks had their default", "[schema]") {
  CHECK(difference("", "").empty());
  CHECK(difference("rate: 0.5", "folder: ''").empty());
  CHECK(difference("rate: 0.25", "folder: ''") == "`rate: 0.25` / `rate: 0.5`");
  CHECK(difference("magnitude: {norm: l2}", "magnitude: {threshold: 2}").empty());
  CHECK(difference("magnitude: {norm: rms}", "magnitude: ") == "`magnitude.norm: rms` / `magnitude.norm: l2`");
}

TEST_CASE("a difference is one printable line, whatever was saved", "[schema]") {
  const auto now = resolve("", "run.yaml", sample());
  const auto found = now.difference_from("\"a\\nb\\x7f\": 1", "saved.yaml");
  REQUIRE(found);
  CHECK(found->line() == "`a?b?: (this version has no such key)` / `a?b?: 1`");
}

TEST_CASE("keys and values that are gone since then are differences where they bind", "[schema]") {
  CHECK(difference("", "old: 3") == "`old: (this version has no such key)` / `old: 3`");
  CHECK(difference("magnitude: {}", "magnitude: {old: [1, 2]}") ==
        "`magnitude.old: (this version has no such key)` / `magnitude.old: [1, 2]`");
  CHECK(difference("", "report: {old: 3}").empty());
  CHECK(difference("magnitude: {}", "magnitude: {norm: l1}") == "`magnitude.norm: l2` / `magnitude.norm: l1`");
  CHECK(difference("", "rate: [3]") == "`rate: 0.5` / `rate: [3]`");
  CHECK_THROWS_WITH(difference("", "a: ["), Catch::StartsWith("state.json:1: not valid YAML"));
  CHECK_THROWS_WITH(difference("", "- a"), Catch::StartsWith("state.json: expected a mapping"));
}

TEST_CASE("incidental keys do not bind, and are compared only on demand", "[schema]") {
  CHECK(difference("{seed: 8, report: {every: 6}}", "seed: 9").empty());
  CHECK(difference("seed: 8", "seed: 9", memsieve::Keys::all) == "`seed: 8` / `seed: 9`");
  CHECK(difference("report: {every: 6}", "", memsieve::Keys::all) == "`report.every: 6` / `report.every: 5`");
  const auto s = resolve("{seed: 8, rate: 0.25}", "run.yaml", versioned());
  CHECK(s.yaml(memsieve::Keys::binding) == "rate: 0.25\nfolder: \"\"\n");
  CHECK_THROWS_AS(Schema().incidental(), std::logic_error);
}

TEST_CASE("the sieve refuses combinations that cannot work, naming the key", "[schema]") {
  const auto refusal = [](const std::string& sieve) {
    memsieve::Setup setup;
    setup.filters = memsieve::builtin_filters();
    setup.dataset_size = 10;
    setup.rows_per_micro_batch = 4;
    try {
      memsieve::Sieve::from_text("sieve:\n  " + sieve, "run.yaml", std::make_shared<memsieve::SoloComm>(), setup);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(refusal("filters: {}").find("sieve.filters: names no filter") != std::string::npos);
  CHECK(refusal("filters: {prediction_error: {}}").find("sieve.held_out.rows: is 0") != std::string::npos);
  const std::string base = "{filters: {magnitude: {}}, standardise: {by: none}, evidence: {kind: visit}, threshold: ";
  const auto whole = [&](const std::string& threshold, const std::string& more = "") {
    memsieve::Setup setup;
    setup.filters = memsieve::builtin_filters();
    setup.dataset_size = 10;
    setup.rows_per_micro_batch = 4;
    try {
      memsieve::Sieve::from_text("sieve: " + base + threshold + more + "}", "run.yaml",
                                 std::make_shared<memsieve::SoloComm>(), setup);
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(whole("{kind: fixed, drop: 2}").empty());
  CHECK(whole("{kind: quantile, drop: 2}").find("run.yaml:1: sieve.threshold.drop: with `kind: quantile`") == 0);
  CHECK(whole("{kind: fixed, drop: 2, release: 1}").find("needs `evidence.kind: ledger`") != std::string::npos);
  CHECK(whole("{kind: fixed, drop: 2}", ", block_rows: 5").find("larger than the micro-batch of 4 rows") !=
        std::string::npos);
  CHECK(whole("{kind: fixed, drop: 2}", ", reference: {kind: start_model}").find("set standardise.by: timestep") !=
        std::string::npos);
}

}  // namespace of_test_schema
