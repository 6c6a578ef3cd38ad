// From drawings to the table's numbers.
#include <audit/measure/benchmark_table.h>
#include <memsieve/error.h>

#include <catch2/catch.hpp>

namespace of_test_benchmark_table {

using namespace memsieve;
using namespace memsieve::audit;

namespace {

Json drawing(int64_t prompt, double similarity, double clip) {
  return {{"unit", "u"}, {"prompt", prompt}, {"similarity", similarity}, {"clip", clip}, {"magnitude", {prompt, 99}}};
}

}  // namespace

TEST_CASE("a prompt's largest, three largest, share and mean") {
  const std::vector<Json> rows = {drawing(7, 0.1, 1), drawing(7, 0.9, 2), drawing(7, 0.8, 3),
                                  drawing(7, 0.4, 4), drawing(2, 0.5, 5), drawing(2, -0.5, 6)};
  const auto found = by_prompt(rows, {2, 7}, {.similarity = 0.8, .sscd = 0.5});
  CHECK(found.at("similarity_max") == std::vector<double>{0.5, 0.9});
  CHECK(found.at("similarity_top3").at(0) == Approx(0));
  CHECK(found.at("similarity_top3").at(1) == Approx(0.7));
  CHECK(found.at("similarity_share") == std::vector<double>{0, 0.5});
  CHECK(found.at("clip") == std::vector<double>{5.5, 2.5});
  CHECK(found.at("magnitude_first") == std::vector<double>{2, 7});
  CHECK(found.count("sscd_max") == 0);
  const Json means = benchmark_means(found, 6, nullptr);
  CHECK(means.at("prompts") == 2);
  CHECK(means.at("clip").at("estimate") == 4);
  CHECK(means.at("clip").at("low") == 2.5);
  CHECK(means.at("clip").at("high") == 5.5);
  CHECK(!means.contains("against_first"));
  CHECK(benchmark_means({}, 0, nullptr).is_null());
}

TEST_CASE("a difference that all prompts share is sure, however much they differ") {
  const PromptNumbers first{{"clip", {-5, 0, 90}}, {"aesthetic", {1, 2, 3}}}, then{{"clip", {-4, 1, 91}}};
  const Json means = benchmark_means(then, 3, &first), difference = means.at("against_first").at("clip");
  CHECK(means.at("against_first").size() == 1);
  CHECK((difference.at("low") == 1 && difference.at("high") == 1));
  CHECK(means.at("clip").at("high").get<double>() - means.at("clip").at("low").get<double>() > 10);
}

TEST_CASE("a prompt or a number that is missing is no mean of the others") {
  std::vector<Json> rows = {drawing(0, 0.1, 1), drawing(1, 0.1, 1)};
  CHECK_THROWS_AS(by_prompt(rows, {0, 1, 2}, {}), DataError);
  rows.back().erase("clip");
  CHECK_THROWS_AS(by_prompt(rows, {0, 1}, {}), DataError);
}

TEST_CASE("a value that is no number is told by its row") {
  for (const Json& value : {Json(nullptr), Json("x"), Json::array(), Json::object()}) {
    std::vector<Json> rows = {drawing(0, 0.1, 1), drawing(1, 0.1, 1)};
    rows.back()["unit"] = "the second";
    rows.back()["magnitude"] = value;
    CHECK_THROWS_WITH(by_prompt(rows, {0, 1}, {}), Catch::Contains("the second"));
    CHECK_THROWS_AS(by_prompt(rows, {0, 1}, {}), DataError);
  }
}

}  // namespace of_test_benchmark_table
