#include <audit/commands/explain.h>
#include <audit/commands/inputs.h>
#include <audit/measure/explanation.h>
#include <audit/output/results.h>
#include <audit/output/words.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>

namespace memsieve::audit {

namespace {

/// A prompt as it is and without a word of it.
struct Omission {
  std::string word;
  int64_t prompt = 0, row = 0;
};

std::vector<Omission> omissions_of(const AuditConfig& config, const Prompts& prompts) {
  std::vector<Omission> found;
  for (const std::string& word : config.settings.texts("without")) {
    const size_t before = found.size();
    for (int64_t prompt = 0; prompt < prompts.size(); ++prompt)
      for (const Variant& variant : prompts.variants(prompt, "without " + word))
        found.push_back({.word = word, .prompt = prompt, .row = variant.row});
    if (found.size() > before) continue;
    throw DataError(config.prompts + ": has no prompt without '" + word +
                    "' beside one with it; make them with `memsieve prompts --leave-out`");
  }
  return found;
}

class Explanation {
 public:
  Explanation(const AuditConfig& config, Group& group)
      : config_(config), group_(group), model_(load_audited_model(config, group)) {
    prompts_ = open_prompts(config, model_, group);
    on_all_ranks(group, [&] {
      prompts_->require_tokens(config.command);
      omissions_ = omissions_of(config, *prompts_);
    });
  }

  void run() {
    Measurements measurements(
        config_.out,
        {config_.command, config_.settings, {{"model", model_.identity}, {"prompts", prompts_->identity()}}}, group_);
    measure_all(measurements, batches(), "explain", group_);
    const Json found = summary(measurements.rows());
    if (group_.rank() == 0) print(found);
    write_results(config_.out, found, group_);
  }

 private:
  std::vector<UnitBatch> batches() {
    std::vector<UnitBatch> all;
    const int64_t steps = std::min(config_.settings.integer("first_steps"), config_.steps);
    for (const auto& batch : drawings(prompts_->size(), config_.pictures, config_.batch_size)) {
      auto& units = all.emplace_back();
      for (const Drawing& drawing : batch) units.units.push_back(unit_name("prompts", drawing));
      units.measure = [this, batch, steps] { return explain_drawings(batch, *prompts_, model_, config_.seed, steps); };
    }
    for (const Omission& omission : omissions_) add_omission(omission, all);
    return all;
  }

  void add_omission(const Omission& omission, std::vector<UnitBatch>& all) {
    for (int64_t begin = 0; begin < config_.pictures; begin += config_.batch_size) {
      std::vector<Drawing> batch;
      UnitBatch units;
      for (int64_t i = begin; i < std::min(config_.pictures, begin + config_.batch_size); ++i) {
        batch.push_back({.prompt = omission.prompt, .picture = i, .row = omission.row});
        units.units.push_back("without " + std::to_string(omission.row) + "/" + std::to_string(i));
      }
      units.measure = [this, batch, omission] {
        std::vector<Json> rows;
        for (const double d : first_magnitudes(batch, *prompts_, model_, config_.seed, Stream::draw_noise))
          rows.push_back({{"set", "without"}, {"prompt", omission.prompt}, {"word", omission.word}, {"magnitude", d}});
        return rows;
      };
      all.push_back(std::move(units));
    }
  }

  /// Mean over pictures and steps of the gradient at each place.
  std::vector<double> mean_gradient(const std::vector<Json>& rows, int64_t prompt, double& first_magnitude) const {
    std::vector<double> sum(static_cast<size_t>(prompts_->data().text_length()));
    double count = 0, pictures = 0;
    first_magnitude = 0;
    read_rows(rows, [&](const Json& row) {
      if (row.at("set") != "prompts" || row.at("prompt") != prompt) return;
      first_magnitude += row.at("magnitude").at(0).get<double>();
      pictures += 1;
      for (const Json& step : row.at("gradient")) {
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += step.at(i).get<double>();
        count += 1;
      }
    });
    for (double& value : sum) value /= count;
    first_magnitude /= pictures;
    return sum;
  }

  Json summary(const std::vector<Json>& rows) const {
    Json summary = summary_head(config_, model_);
    summary["steps"] = std::min(config_.settings.integer("first_steps"), config_.steps);
    const auto captions = captions_of(*prompts_);
    for (int64_t prompt = 0; prompt < prompts_->size(); ++prompt) {
      double magnitude = 0;
      const auto gradient = mean_gradient(rows, prompt, magnitude);
      const auto words = prompts_->tokens(prompt);
      Json entry{{"prompt", prompt},
                 {"caption", captions[static_cast<size_t>(prompt)]},
                 {"magnitude_first", magnitude},
                 {"tokens", Json::array()},
                 {"without", Json::array()}};
      // Place 0 is the token that begins every caption, and from the first end token on there is no word.
      for (int64_t place = 1; place < prompts_->end_token(prompt); ++place)
        entry["tokens"].push_back({{"place", place},
                                   {"word", words[static_cast<size_t>(place)]},
                                   {"gradient", gradient[static_cast<size_t>(place)]}});
      for (const Omission& omission : omissions_)
        if (omission.prompt == prompt)
          entry["without"].push_back({{"word", omission.word}, {"magnitude_first", mean_without(rows, omission)}});
      summary["prompts"].push_back(std::move(entry));
    }
    return summary;
  }

  static double mean_without(const std::vector<Json>& rows, const Omission& omission) {
    double sum = 0, count = 0;
    read_rows(rows, [&](const Json& row) {
      if (row.at("set") != "without" || row.at("prompt") != omission.prompt || row.at("word") != omission.word) return;
      sum += row.at("magnitude").get<double>();
      count += 1;
    });
    return sum / count;
  }

  static void print(const Json& summary) {
    const bool colour = isatty(STDOUT_FILENO) != 0;
    for (const Json& prompt : summary.at("prompts")) {
      std::vector<WeighedWord> words;
      for (const Json& token : prompt.at("tokens"))
        words.push_back({detail::printable(token.at("word")), token.at("gradient")});
      std::cout << weighed_line(words, colour) << "\n";
      for (const Json& without : prompt.at("without"))
        std::cout << "  magnitude " << prompt.at("magnitude_first").get<double>() << ", without '"
                  << detail::printable(without.at("word")) << "' " << without.at("magnitude_first").get<double>()
                  << "\n";
    }
    std::cout << std::flush;
  }

  const AuditConfig& config_;
  Group& group_;
  AuditedModel model_;
  std::optional<Prompts> prompts_;
  std::vector<Omission> omissions_;
};

}  // namespace

void add_explain_options(Options& options) {
  options
      .integer(
          "first_steps", 1, 1, 1 << 20,
          "steps over which the gradient is averaged; each costs a backward pass. Published: 1, and 50 in a notebook")
      .texts(
          "without", {},
          "a word of a prompt: shows what the magnitude becomes without it. Needs the prompts' file to have been made "
          "with --leave-out")
      .incidental();
}

ExitCode explain(const AuditConfig& config, Group& group) {
  Explanation(config, group).run();
  return kDone;
}

}  // namespace memsieve::audit
