#include <audit/commands/canary.h>
#include <audit/commands/inputs.h>
#include <audit/data/canaries.h>
#include <audit/measure/prediction_error.h>
#include <audit/output/measurements.h>
#include <audit/output/results.h>
#include <audit/statistics/descriptive.h>
#include <audit/statistics/rank_test.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// A model whose errors are measured, and what its units are named with.
struct Asked {
  std::string name;
  AuditedModel& model;
};

class CanaryAudit {
 public:
  CanaryAudit(const AuditConfig& config, Group& group)
      : config_(config),
        group_(group),
        model_(load_audited_model(config, group)),
        prompts_(open_prompts(config, model_, group)),
        draws_{.seed = config.seed, .draws = config.settings.integer("draws")} {
    on_all_ranks(group, [&] {
      const std::string& manifest = config.settings.text("manifest");
      if (manifest.empty())
        throw ConfigError(config.settings.where("manifest") +
                          ": is missing; name the file that `memsieve canaries` wrote");
      canaries_ = read_canaries(manifest, config.prompts);
    });
    open_reference();
  }

  void run() {
    // Rows of a reference that is no longer asked for would still be subtracted: they answer another question.
    const std::vector<std::pair<std::string, std::string>> inputs = {
        {"model", model_.identity},
        {"prompts", prompts_->identity()},
        {"picture set", pictures_identity(*prompts_)},
        {"lot of canaries", rows_identity(canary_rows())},
        {"reference", reference_ ? reference_->identity : "none"}};
    Measurements measurements(config_.out, {config_.command, config_.settings, inputs}, group_);
    std::vector<UnitBatch> batches;
    add_batches({"model", model_}, batches);
    if (reference_) add_batches({"reference", *reference_}, batches);
    measure_all(measurements, batches, "canaries", group_);
    write_results(config_.out, summary(measurements.rows()), group_);
  }

 private:
  void open_reference() {
    AuditConfig other = config_;
    other.model = config_.settings.text("reference");
    if (other.model.empty()) return;
    other.model_key = "reference";
    other.lora.clear();
    other.ema = false;
    reference_.emplace(load_audited_model(other, group_));
    open_prompts(other, *reference_, group_);  // whether that model takes them
  }

  /// Of all canaries, each after its number of variants. What was planted is left out: nothing that is measured depends
  /// on it.
  std::vector<int64_t> canary_rows() const {
    std::vector<int64_t> all;
    for (const Canary& canary : canaries_) {
      all.push_back(static_cast<int64_t>(canary.rows.size()));
      all.insert(all.end(), canary.rows.begin(), canary.rows.end());
    }
    return all;
  }

  void add_batches(const Asked& asked, std::vector<UnitBatch>& batches) {
    for (size_t c = 0; c < canaries_.size(); ++c) {
      const auto variants = static_cast<int64_t>(canaries_[c].rows.size());
      for (int64_t begin = 0; begin < variants; begin += config_.batch_size) {
        auto& batch = batches.emplace_back();
        const int64_t end = std::min(variants, begin + config_.batch_size);
        for (int64_t v = begin; v < end; ++v)
          batch.units.push_back(asked.name + "/" + std::to_string(c) + "/" + std::to_string(v));
        batch.measure = [this, asked, c, begin, end] { return measure(asked, c, begin, end); };
      }
    }
  }

  std::vector<Json> measure(const Asked& asked, size_t canary, int64_t begin, int64_t end) {
    const auto& all = canaries_[canary].rows;
    const std::vector<int64_t> rows(all.begin() + begin, all.begin() + end);
    NoiseDraws draws = draws_;
    draws.key = static_cast<int64_t>(canary);
    draws.rows = end - begin;
    const auto errors = prediction_errors(prompts_->data(), rows, draws, asked.model);
    std::vector<Json> out;
    for (int64_t v = begin; v < end; ++v) {
      const auto& of_draws = errors[static_cast<size_t>(v - begin)];
      out.push_back({{"set", asked.name},
                     {"canary", canary},
                     {"variant", v},
                     {"row", rows[static_cast<size_t>(v - begin)]},
                     {"error", mean(of_draws)}});
    }
    return out;
  }

  /// [canary][variant]: the model's error, less the reference's if there is one.
  std::vector<std::vector<double>> scores(const std::vector<Json>& rows) const {
    std::vector<std::vector<double>> out;
    for (const Canary& canary : canaries_) out.emplace_back(canary.rows.size(), 0.0);
    read_rows(rows, [&](const Json& row) {
      out.at(row.at("canary")).at(row.at("variant")) +=
          (row.at("set") == "reference" ? -1 : 1) * row.at("error").get<double>();
    });
    return out;
  }

  Json summary(const std::vector<Json>& rows) const {
    Json summary{{"command", config_.command},
                 {"model", config_.model},
                 {"lora", config_.lora},
                 {"ema", config_.ema},
                 {"reference", config_.settings.text("reference")},
                 {"prompts_file", config_.prompts},
                 {"draws", draws_.draws},
                 {"seed", config_.seed}};
    const auto all = scores(rows);
    std::vector<Rank> ranks;
    std::string told;
    for (size_t c = 0; c < canaries_.size(); ++c) {
      const auto planted = static_cast<size_t>(canaries_[c].planted);
      const Rank& rank = ranks.emplace_back(rank_of(all[c], planted));
      told += (c > 0 ? ", " : "") + std::to_string(rank.rank);
      summary["canaries"].push_back({{"canary", c},
                                     {"planted", planted},
                                     {"rank", rank.rank},
                                     {"variants", rank.variants},
                                     {"p_value", p_value(rank)},
                                     {"scores", all[c]}});
    }
    const double p = combined_p_value(ranks), level = config_.settings.real("level");
    summary["p_value"] = p;
    summary["level"] = level;
    summary["verdict"] = p <= level ? "trained on the canaries" : "not shown to be trained on the canaries";
    char number[32];
    std::snprintf(number, sizeof number, "%.3g", p);
    if (group_.rank() == 0)
      log_info("ranks " + told + " of " + std::to_string(ranks.front().variants) + ": p = " + number + ", " +
               summary["verdict"].get<std::string>());
    return summary;
  }

  const AuditConfig& config_;
  Group& group_;
  AuditedModel model_;
  std::optional<Prompts> prompts_;
  NoiseDraws draws_;
  std::vector<Canary> canaries_;
  std::optional<AuditedModel> reference_;
};

}  // namespace

void add_canary_options(Options& options) {
  options.text("manifest", "", "what `memsieve canaries` wrote; --prompts is the data set of all variants")
      .incidental()
      .integer("draws", 16, 1, 1 << 16, "noises under which each variant is predicted, at timesteps spread evenly")
      .text("reference", "",
            "folder of a model that has surely not seen the canaries, such as the one that training "
            "started from: its errors are subtracted, which makes the test sharper")
      .incidental()
      .real("level", 0.01, 0, 1, "p-value up to which the verdict is that they were trained on")
      .incidental();
}

ExitCode canary(const AuditConfig& config, Group& group) {
  CanaryAudit(config, group).run();
  return kDone;
}

}  // namespace memsieve::audit
