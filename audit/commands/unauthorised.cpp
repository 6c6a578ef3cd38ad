#include <audit/commands/unauthorised.h>
#include <audit/output/measurements.h>
#include <audit/output/results.h>
#include <audit/statistics/binomial_test.h>
#include <audit/statistics/intervals.h>
#include <audit/statistics/rank_test.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <cstdio>

namespace memsieve::audit {

namespace {

[[noreturn]] void refuse(const Settings& settings, const std::string& key, const std::string& what) {
  throw ConfigError(settings.where(key) + ": " + what);
}

/// What `memsieve coating measure` wrote.
struct Measured {
  /// of the secret field, then of the others, over all drawings
  std::vector<double> sums;
  /// a row for each drawing
  std::vector<Json> drawings;
};

Measured read_measured(const std::string& text, const std::string& path) {
  const Json content = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object() || content.value("format", Json()) != "memsieve-coating-scores" ||
      content.value("version", Json()) != 1)
    throw DataError(path + ": holds no scores of version 1 by `memsieve coating`");
  Measured measured;
  try {
    measured.sums = content.at("sums").get<std::vector<double>>();
    measured.drawings = content.at("drawings").get<std::vector<Json>>();
  } catch (const Json::exception& error) {
    throw DataError(path + ": is damaged (" + one_line(error) + ")");
  }
  if (measured.sums.size() < 2) throw DataError(path + ": compares with no other field; measure with --decoys 999");
  if (measured.drawings.empty()) throw DataError(path + ": holds no drawing");
  for (size_t i = 0; i < measured.drawings.size(); ++i)
    if (!measured.drawings[i].is_object())
      throw DataError(path + ": is damaged (drawing " + std::to_string(i) + " is no object)");
  return measured;
}

Json field_test(const Measured& measured) {
  std::vector<double> smaller_is_clearer;
  for (const double sum : measured.sums) smaller_is_clearer.push_back(-sum);
  const Rank rank = rank_of(smaller_is_clearer, 0);
  return {{"test", "rank of the secret field"},
          {"drawings", measured.drawings.size()},
          {"rank", rank.rank},
          {"fields", rank.variants},
          {"p_value", p_value(rank)}};
}

/// Whether a count of drawings is given.
bool asks_count_test(const Settings& s) {
  for (const char* key : {"coated", "drawings", "clean_coated", "clean_drawings"})
    if (s.integer(key) > 0) return true;
  return s.real("clean_rate") >= 0;
}

Json count_test(const Settings& s) {
  const int64_t coated = s.integer("coated"), drawings = s.integer("drawings"), clean = s.integer("clean_coated"),
                clean_drawings = s.integer("clean_drawings");
  const double rate = s.real("clean_rate");
  if (drawings == 0) refuse(s, "drawings", "is missing; say how many the classifier was shown");
  if (coated > drawings) refuse(s, "coated", "is more than `drawings`, which counts all of them");
  if (clean > clean_drawings) refuse(s, "clean_coated", "is more than `clean_drawings`, which counts all of them");
  if ((rate >= 0) == (clean_drawings > 0))
    refuse(s, "drawings",
           "must be compared with something: give `clean_rate`, or `clean_coated` and `clean_drawings`, not both");
  Json test{{"drawings", drawings}, {"coated", coated}, {"share", as_json(clopper_pearson(coated, drawings))}};
  if (rate >= 0) {
    test["test"] = "binomial";
    test["clean_rate"] = rate;
    test["p_value"] = binomial_test(coated, drawings, rate);
    test["coated_needed"] = binomial_critical_count(drawings, rate, s.real("level"));
  } else {
    test["test"] = "Fisher";
    test["clean_share"] = as_json(clopper_pearson(clean, clean_drawings));
    test["p_value"] = fisher_test(coated, drawings, clean, clean_drawings);
  }
  return test;
}

}  // namespace

void add_unauthorised_options(Options& options) {
  options.text("measured", "", "what `memsieve coating measure` wrote of the drawings")
      .incidental()
      .integer("coated", 0, 0, 1 << 28, "of a classifier: drawings that it calls coated")
      .integer("drawings", 0, 0, 1 << 28, "of a classifier: drawings that it was shown")
      .real("clean_rate", -1, -1, 1, "its rate on drawings of clean models, where that is known; -1 = it was counted")
      .integer("clean_coated", 0, 0, 1 << 28, "drawings of clean models that it calls coated")
      .integer("clean_drawings", 0, 0, 1 << 28, "drawings of clean models that it was shown")
      .real("level", 0.01, 0, 1, "p-value up to which the verdict is that the pictures were trained on")
      .incidental();
}

ExitCode unauthorised(const AuditConfig& config, Group& group) {
  const Settings& s = config.settings;
  Json tests = Json::array();
  Measured measured;
  std::string text;
  on_all_ranks(group, [&] {
    if (const std::string& path = s.text("measured"); !path.empty()) {
      text = read_text_file(path);
      measured = read_measured(text, path);
      tests.push_back(field_test(measured));
    }
    if (asks_count_test(s)) tests.push_back(count_test(s));
    if (tests.empty())
      refuse(s, "measured", "is missing; name what `memsieve coating measure` wrote, or give `drawings` and `coated`");
  });
  const std::string identity = std::to_string(detail::fnv1a(text.data(), text.size()));
  Measurements measurements(config.out, {config.command, s, {{"measured", identity}}}, group);
  UnitBatch rows;
  for (size_t i = 0; i < measured.drawings.size(); ++i) rows.units.push_back("drawing/" + std::to_string(i));
  rows.measure = [&] { return measured.drawings; };
  if (!rows.units.empty()) measure_all(measurements, {rows}, "drawings", group);
  for (Json& test : tests) {
    const double p = test.at("p_value");
    test["verdict"] = p <= s.real("level") ? "trained on the coated pictures" : "not shown";
    char number[32];
    std::snprintf(number, sizeof number, "%.3g", p);
    if (group.rank() == 0)
      log_info(test["test"].get<std::string>() + ": p = " + number + ", " + test["verdict"].get<std::string>());
  }
  write_results(config.out, {{"command", config.command}, {"level", s.real("level")}, {"tests", tests}}, group);
  return kDone;
}

}  // namespace memsieve::audit
