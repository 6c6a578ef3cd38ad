#include <audit/measure/check_summary.h>
#include <audit/measure/scores.h>
#include <audit/output/results.h>
#include <audit/statistics/descriptive.h>
#include <audit/statistics/intervals.h>
#include <audit/statistics/roc.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

namespace memsieve::audit {

namespace {

constexpr int64_t kLossesAveraged = 10;
/// Divergences are no evidence by themselves, only beside those of held-out pictures.
constexpr double kDivergenceLevel = 1.0 / (kLeastHeldOutInverted + 1);

/// Drawings of one picture, or of many, in one way.
struct DrawnCopies {
  int64_t drawings = 0, copies = 0;
  double best = -1;
  void add(const DrawnCopies& more) {
    drawings += more.drawings;
    copies += more.copies;
    best = std::max(best, more.best);
  }
  Json json() const {
    if (drawings == 0) return nullptr;
    return {{"drawings", drawings},
            {"copies", copies},
            {"best", best},
            {"share", as_json(clopper_pearson(copies, drawings))}};
  }
};

/// What was found of one picture.
struct PictureFindings {
  std::optional<double> log_error, loss_begin, loss_end;
  DrawnCopies caption, optimised;
  /// of inverted noise: infinite where no look succeeded; all that was drawn
  std::optional<double> divergence;
  int64_t inversion_drawings = 0;
};

DrawnCopies copies_of(const Json& drawn, double threshold) {
  const auto similarity = drawn.at("similarity").get<std::vector<double>>();
  return {.drawings = static_cast<int64_t>(similarity.size()),
          .copies = count_at_least(similarity, threshold),
          .best = similarity.empty() ? -1 : *std::max_element(similarity.begin(), similarity.end())};
}

void add_row(PictureFindings& found, const Json& row, double threshold) {
  if (row.contains("errors")) {
    double sum = 0;
    for (const Json& error : row["errors"]) sum += std::log(error.get<double>());
    found.log_error = sum / static_cast<double>(row["errors"].size());
  }
  if (row.contains("caption")) found.caption = copies_of(row["caption"], threshold);
  if (row.contains("optimised")) found.optimised = copies_of(row["optimised"], threshold);
  if (row.contains("inversion")) {
    const Json& divergence = row["inversion"].at("divergence");
    found.divergence = divergence.is_null() ? std::numeric_limits<double>::infinity() : divergence.get<double>();
    found.inversion_drawings = row["inversion"].at("drawings").get<int64_t>();
  }
  if (row.contains("losses") && !row["losses"].empty()) {
    const auto losses = row["losses"].get<std::vector<double>>();
    const size_t some = std::min<size_t>(kLossesAveraged, losses.size());
    found.loss_begin = mean(std::span(losses).first(some));
    found.loss_end = mean(std::span(losses).last(some));
  }
}

std::map<int64_t, PictureFindings> findings_of(const std::vector<Json>& rows, const std::string& set,
                                               double threshold) {
  std::map<int64_t, PictureFindings> found;
  read_rows(rows, [&](const Json& row) {
    if (row.at("set") == set) add_row(found[row.at("prompt").get<int64_t>()], row, threshold);
  });
  return found;
}

/// What held-out pictures, treated alike, gave.
struct HeldOutFindings {
  std::vector<double> neglog_errors, best, negative_divergences;
  DrawnCopies caption, optimised;
  int64_t drawn = 0, copied = 0;

  Json json() const {
    return {{"pictures", neglog_errors.size()},
            {"drawn", drawn},
            {"copied", drawn > 0 ? as_json(clopper_pearson(copied, drawn)) : Json(nullptr)},
            {"with_caption", caption.json()},
            {"with_optimised_states", optimised.json()},
            {"inverted", inverted()}};
  }
  /// How many of those whose noise was inverted were found.
  Json inverted() const {
    if (negative_divergences.empty()) return nullptr;
    const auto found = [](double negative) { return std::isfinite(negative); };
    return {{"pictures", negative_divergences.size()},
            {"found", std::count_if(negative_divergences.begin(), negative_divergences.end(), found)}};
  }
};

HeldOutFindings held_out_of(const std::map<int64_t, PictureFindings>& pictures) {
  HeldOutFindings found;
  for (const auto& [row, picture] : pictures) {
    if (picture.log_error) found.neglog_errors.push_back(-*picture.log_error);
    if (picture.optimised.drawings > 0) found.best.push_back(picture.optimised.best);
    if (picture.divergence) found.negative_divergences.push_back(-*picture.divergence);
    if (picture.caption.drawings == 0) continue;
    found.caption.add(picture.caption);
    found.optimised.add(picture.optimised);
    found.drawn += 1;
    found.copied += picture.caption.copies + picture.optimised.copies > 0 ? 1 : 0;
  }
  return found;
}

/// Share of held-out pictures, this one among them, whose noise diverges as little; 1 where none was inverted.
double p_divergence(const PictureFindings& picture, const HeldOutFindings& held_out) {
  if (!picture.divergence || held_out.negative_divergences.empty()) return 1;
  return p_values({-*picture.divergence}, held_out.negative_divergences).front();
}

bool is_copied(const PictureFindings& picture, const HeldOutFindings& held_out) {
  if (picture.caption.copies > 0 || p_divergence(picture, held_out) <= kDivergenceLevel) return true;
  if (held_out.best.empty()) return false;
  const auto below = [&](double best) { return best < picture.optimised.best; };
  return picture.optimised.copies > 0 && std::all_of(held_out.best.begin(), held_out.best.end(), below);
}

Json described(const PictureFindings& picture, const HeldOutFindings& held_out) {
  const auto drawings = picture.caption.drawings + picture.optimised.drawings + picture.inversion_drawings;
  Json found;
  if (picture.log_error) {
    found["log_error"] = *picture.log_error;
    if (!held_out.neglog_errors.empty())
      found["p_error"] = p_values({-*picture.log_error}, held_out.neglog_errors).front();
  }
  if (picture.loss_begin) found["loss_begin"] = *picture.loss_begin;
  if (picture.loss_end) found["loss_end"] = *picture.loss_end;
  found["with_caption"] = picture.caption.json();
  found["with_optimised_states"] = picture.optimised.json();
  if (picture.optimised.drawings > 0 && !held_out.best.empty())
    found["p_similarity"] = p_values({picture.optimised.best}, held_out.best).front();
  if (picture.divergence) {
    found["divergence"] = std::isfinite(*picture.divergence) ? Json(*picture.divergence) : Json(nullptr);
    if (!held_out.negative_divergences.empty()) found["p_divergence"] = p_divergence(picture, held_out);
  }
  found["verdict"] = is_copied(picture, held_out) ? "copied" : "not shown by " + std::to_string(drawings) + " drawings";
  return found;
}

}  // namespace

void add_verdicts(Json& summary, const std::vector<Json>& rows) {
  const auto threshold = summary.at("copy_similarity").get<double>();
  const auto pictures = findings_of(rows, "prompts", threshold);
  const HeldOutFindings held_out = held_out_of(findings_of(rows, "held_out", threshold));
  DrawnCopies caption, optimised;
  int64_t copied = 0;
  std::vector<double> neglog_errors;
  for (Json& prompt : summary["prompts"]) {
    const PictureFindings& picture = pictures.at(prompt.at("prompt").get<int64_t>());
    prompt.update(described(picture, held_out));
    copied += is_copied(picture, held_out) ? 1 : 0;
    caption.add(picture.caption);
    optimised.add(picture.optimised);
    if (picture.log_error) neglog_errors.push_back(-*picture.log_error);
  }
  summary["copied"] = as_json(clopper_pearson(copied, static_cast<int64_t>(summary["prompts"].size())));
  summary["with_caption"] = caption.json();
  summary["with_optimised_states"] = optimised.json();
  summary["held_out"] =
      held_out.drawn + static_cast<int64_t>(held_out.neglog_errors.size()) > 0 ? held_out.json() : Json(nullptr);
  if (!neglog_errors.empty() && !held_out.neglog_errors.empty())
    summary["error_separation"] = separation(neglog_errors, held_out.neglog_errors);
}

}  // namespace memsieve::audit
