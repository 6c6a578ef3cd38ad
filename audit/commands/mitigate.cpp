#include <ATen/ATen.h>
#include <audit/commands/inputs.h>
#include <audit/commands/methods.h>
#include <audit/commands/mitigate.h>
#include <audit/measure/method_drawings.h>
#include <audit/measure/scores.h>
#include <audit/output/results.h>
#include <audit/statistics/descriptive.h>
#include <audit/statistics/intervals.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

class Comparison {
 public:
  Comparison(const AuditConfig& config, Group& group)
      : config_(config),
        group_(group),
        drawn_{.methods = methods_of(config.settings), .options = mitigation_options(config), .folder = config.out},
        model_(load_audited_model(config, group)) {
    prompts_ = open_prompts(config, model_, group);
    on_all_ranks(group, [&] { require_drawable(drawn_.methods, *prompts_, first_rows(prompts_->size())); });
    decoder_ = picture_decoder(config, model_, *prompts_, group);
    if (decoder_) drawn_.decoder = &*decoder_;
  }

  void run() {
    const Question question{.command = config_.command,
                            .settings = config_.settings,
                            .inputs = {{"model", model_.identity},
                                       {"prompts", prompts_->identity()},
                                       {"picture set", pictures_identity(*prompts_)},
                                       comparison_input(decoder_)}};
    Measurements measurements(config_.out, question, group_);
    measure_all(measurements, batches(), "mitigate", group_);
    write_results(config_.out, summary(measurements.rows()), group_);
  }

 private:
  std::vector<UnitBatch> batches() {
    std::vector<UnitBatch> all;
    for (const auto& batch : drawings(prompts_->size(), config_.pictures, config_.batch_size))
      all.push_back({units_of(batch, drawn_), [this, batch] { return measure(batch); }});
    return all;
  }

  std::vector<Json> measure(const std::vector<Drawing>& batch) {
    const at::Tensor known = known_pictures(batch);
    return draw_by_methods(batch, *prompts_, model_, drawn_,
                           [&](const auto&, const at::Tensor& shown, std::vector<Json>& rows) {
                             if (!known.defined()) return;
                             const auto similarity = numbers(correlation(shown, known));
                             for (size_t i = 0; i < rows.size(); ++i) rows[i]["similarity"] = similarity[i];
                           });
  }

  /// [B, ...]: the prompts' own pictures, as drawings are compared with them; undefined where the file has none.
  at::Tensor known_pictures(const std::vector<Drawing>& batch) {
    if (!prompts_->has_pictures()) return {};
    const std::vector<int64_t> ids = prompts_of(batch);
    if (!decoder_) return prompts_->data().load(ids).latents;
    return own_pictures(*prompts_, ids, *decoder_, model_.model.device());
  }

  /// Means are over prompts, since the drawings of one are not independent.
  Json summary_of(const std::string& method, const std::vector<Json>& rows) const {
    std::vector<double> similarity;
    PromptMeans first(prompts_->size()), all_steps(prompts_->size()), to_plain(prompts_->size()),
        to_known(prompts_->size());
    read_rows(rows, [&](const Json& row) {
      if (row.at("method") != method) return;
      const auto prompt = row.at("prompt").get<int64_t>();
      const auto steps = row.at("magnitude").get<std::vector<double>>();
      first.add(prompt, steps.at(0));
      all_steps.add(prompt, mean_interval(steps).estimate);
      to_plain.add(prompt, row.at("similarity_to_plain"));
      if (!row.contains("similarity")) return;
      to_known.add(prompt, row["similarity"]);
      similarity.push_back(row["similarity"]);
    });
    const auto interval = [](const PromptMeans& means, const std::string& name) {
      return as_json(mean_interval(means.values(name)));
    };
    Json entry{{"method", method},
               {"magnitude_first", interval(first, "magnitude")},
               {"magnitude_mean", interval(all_steps, "magnitude")},
               {"similarity_to_plain", interval(to_plain, "similarity_to_plain")}};
    if (similarity.empty()) return entry;
    const double copy = config_.settings.real("copy_similarity");
    entry["similarity"] = interval(to_known, "similarity");
    entry["copies"] =
        as_json(clopper_pearson(count_at_least(similarity, copy), static_cast<int64_t>(similarity.size())));
    return entry;
  }

  Json summary(const std::vector<Json>& rows) const {
    Json summary = summary_head(config_, model_);
    summary["similarity"] = decoder_ ? "pixels" : "latents";
    summary["copy_similarity"] = config_.settings.real("copy_similarity");
    for (const Mitigation* method : drawn_.methods) summary["methods"].push_back(summary_of(method->name, rows));
    const auto captions = captions_of(*prompts_);
    for (size_t i = 0; i < captions.size(); ++i)
      summary["prompts"].push_back({{"prompt", i}, {"caption", captions[i]}});
    const auto unguided = std::count_if(rows.begin(), rows.end(), [](const Json& row) {
      return row.contains("guided_from") && row["guided_from"].is_null();
    });
    summary["never_guided"] = unguided;
    if (unguided > 0 && group_.rank() == 0)
      log_warning(
          "dynamic_guidance: " + std::to_string(unguided) +
          " pictures had no local minimum of the magnitude, so they were never guided; draw them with more steps "
          "or by another method");
    return summary;
  }

  const AuditConfig& config_;
  Group& group_;
  MethodDrawings drawn_;
  AuditedModel model_;
  std::optional<Prompts> prompts_;
  std::optional<PictureDecoder> decoder_;
};

}  // namespace

void add_mitigate_options(Options& options) {
  add_method_options(options);
}

ExitCode mitigate(const AuditConfig& config, Group& group) {
  Comparison(config, group).run();
  return kDone;
}

}  // namespace memsieve::audit
