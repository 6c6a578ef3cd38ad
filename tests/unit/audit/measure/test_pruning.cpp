// Which weights are pruned, and what of a check follows from its rows.
#include <ATen/ATen.h>
#include <audit/measure/check_summary.h>
#include <audit/measure/prediction_error.h>
#include <audit/measure/pruning.h>

#include <catch2/catch.hpp>

namespace of_test_pruning {

using namespace memsieve::audit;

TEST_CASE("of each output the highest scores are pruned, as far as they are above the base's, in any call") {
  const at::Tensor weight = at::tensor({1.0, -2.0, 3.0, 4.0, 0.5, 0.4, 0.3, 0.2}).view({2, 4});
  // Scores of call 0: 1 2 3 8 and .5 .4 .3 .4; of call 1: 10 2 3 4 and 5 .4 .3 .2.
  const at::Tensor target = at::tensor({1.0, 1.0, 1.0, 4.0, 100.0, 1.0, 1.0, 1.0}).view({2, 4});
  const at::Tensor never = at::zeros({2, 4}, at::kDouble);
  const auto mask = [&](const at::Tensor& base, double ratio) { return pruning_mask(weight, target, base, ratio); };
  CHECK(at::equal(mask(never, 0.25), at::tensor({1, 0, 0, 1, 1, 0, 0, 0}).view({2, 4}).to(at::kBool)));
  CHECK(mask(never, 0.24).sum().item<int64_t>() == 0);
  CHECK(mask(never, 1).all().item<bool>());
  CHECK(mask(target, 1).sum().item<int64_t>() == 0);
  const at::Tensor base = at::tensor({0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0}).view({2, 4});
  CHECK(at::equal(mask(base, 0.25), at::tensor({1, 0, 0, 0, 1, 0, 0, 0}).view({2, 4}).to(at::kBool)));
}

TEST_CASE("timesteps lie in the middle of equal parts") {
  CHECK(middle_timesteps(1000, 2) == std::vector<int64_t>{250, 750});
  CHECK(middle_timesteps(3, 3) == std::vector<int64_t>{0, 1, 2});
}

namespace {

Json drawn_row(const std::string& set, int64_t prompt, const std::vector<double>& caption,
               const std::vector<double>& optimised) {
  Json row{{"set", set}, {"prompt", prompt}, {"caption", {{"similarity", caption}}}};
  if (!optimised.empty()) row["optimised"] = {{"similarity", optimised}};
  return row;
}

Json judged(const std::vector<Json>& rows, int64_t pictures) {
  Json summary{{"copy_similarity", 0.8}};
  for (int64_t i = 0; i < pictures; ++i) summary["prompts"].push_back({{"prompt", i}});
  add_verdicts(summary, rows);
  return summary;
}

}  // namespace

TEST_CASE(
    "a copy by optimised states counts only where it is closer than any of the held-out pictures, which there must be") {
  const std::vector<Json> rows = {drawn_row("prompts", 0, {0.1, 0.2}, {0.85, 0.3}),
                                  drawn_row("prompts", 1, {0.1, 0.2}, {0.95, 0.3}),
                                  drawn_row("prompts", 2, {0.1, 0.8}, {0.1, 0.1})};
  const Json alone = judged(rows, 3);
  CHECK((alone["held_out"].is_null() && alone["with_optimised_states"]["copies"] == 2));
  CHECK(alone["prompts"][1]["verdict"] == "not shown by 4 drawings");
  CHECK((alone["prompts"][2]["verdict"] == "copied" && alone["copied"]["estimate"].get<double>() == Approx(1.0 / 3)));
  std::vector<Json> both = rows;
  both.push_back(drawn_row("held_out", 0, {0.1, 0.2}, {0.9, 0.85}));
  both.push_back(drawn_row("held_out", 1, {0.1, 0.2}, {0.2, 0.2}));
  const Json found = judged(both, 3);
  CHECK(found["prompts"][0]["verdict"] == "not shown by 4 drawings");
  CHECK(found["prompts"][1]["verdict"] == "copied");
  CHECK(found["prompts"][2]["verdict"] == "copied");
  CHECK(found["copied"]["estimate"].get<double>() == Approx(2.0 / 3));
  CHECK((found["with_caption"]["copies"] == 1 && found["with_optimised_states"]["copies"] == 2));
  CHECK((found["held_out"]["copied"]["estimate"] == 0.5 && found["held_out"]["with_optimised_states"]["copies"] == 2));
  CHECK(found["prompts"][0]["p_similarity"].get<double>() == Approx(2.0 / 3));
  CHECK(found["prompts"][1]["p_similarity"].get<double>() == Approx(1.0 / 3));
}

TEST_CASE("inverted noise counts only where less of it is laid down than for 19 of 20 held-out pictures") {
  const auto row = [](const std::string& set, int64_t prompt, const Json& divergence) {
    Json made{{"set", set}, {"prompt", prompt}, {"inversion", {{"divergence", divergence}, {"drawings", 56}}}};
    if (set == "held_out") made["caption"] = {{"similarity", {0.1}}};
    return made;
  };
  std::vector<Json> rows = {row("prompts", 0, 0.2), row("prompts", 1, 0.05), row("prompts", 2, nullptr)};
  const Json alone = judged(rows, 3);
  for (const Json& prompt : alone["prompts"]) CHECK(prompt["verdict"] == "not shown by 56 drawings");
  CHECK((alone["prompts"][0]["divergence"] == 0.2 && alone["prompts"][2]["divergence"].is_null()));
  rows.push_back(row("held_out", 0, 0.1));
  for (int64_t i = 1; i < 18; ++i) rows.push_back(row("held_out", i, nullptr));
  CHECK(judged(rows, 3)["prompts"][1]["verdict"] == "not shown by 56 drawings");
  rows.push_back(row("held_out", 18, 0.3));
  const Json found = judged(rows, 3);
  CHECK(found["prompts"][0]["verdict"] == "not shown by 56 drawings");
  CHECK(found["prompts"][1]["verdict"] == "copied");
  CHECK(found["prompts"][2]["verdict"] == "not shown by 56 drawings");
  CHECK(found["prompts"][0]["p_divergence"].get<double>() == Approx(2.0 / 20));
  CHECK(found["prompts"][1]["p_divergence"].get<double>() == Approx(1.0 / 20));
  CHECK(found["prompts"][2]["p_divergence"].get<double>() == 1);
  CHECK((found["held_out"]["inverted"]["pictures"] == 19 && found["held_out"]["inverted"]["found"] == 2));
}

}  // namespace of_test_pruning
