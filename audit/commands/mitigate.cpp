#include <ATen/ATen.h>
#include <audit/commands/inputs.h>
#include <audit/commands/mitigate.h>
#include <audit/measure/mitigation.h>
#include <audit/measure/scores.h>
#include <audit/output/results.h>
#include <audit/statistics/intervals.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// "none" and the methods asked for, in the table's order.
std::vector<const Mitigation*> methods_of(const AuditConfig& config) {
  const auto asked = config.settings.texts("methods");
  std::vector<const Mitigation*> methods;
  std::string known;
  for (const Mitigation& method : mitigations()) {
    if (method.name != "none") known += (known.empty() ? "" : ", ") + method.name;
    if (method.name == "none" || std::count(asked.begin(), asked.end(), method.name) > 0) methods.push_back(&method);
  }
  for (const std::string& name : asked) {
    const auto has_name = [&](const Mitigation& method) { return method.name == name; };
    if (std::none_of(mitigations().begin(), mitigations().end(), has_name))
      throw ConfigError(config.settings.where("methods") + ": '" + name + "' is no method; known are: " + known);
  }
  return methods;
}

class Comparison {
 public:
  Comparison(const AuditConfig& config, Group& group)
      : config_(config), group_(group), methods_(methods_of(config)), model_(load_audited_model(config, group)) {
    prompts_ = open_prompts(config, model_, group);
    on_all_ranks(group, [&] {
      if (asked_for("attention")) prompts_->require_tokens("the method 'attention'");
    });
    decoder_ = picture_decoder(config, model_, *prompts_, group);
    const Settings& s = config.settings;
    options_ = {.seed = config.seed,
                .target = s.real("target"),
                .learning_rate = s.real("learning_rate"),
                .updates = s.integer("updates"),
                .first_token_scale = s.real("first_token_scale")};
  }

  void run() {
    const Question question{.command = config_.command,
                            .settings = config_.settings,
                            .inputs = {{"model", model_.identity},
                                       {"prompts", prompts_->identity()},
                                       {"picture set", pictures_identity(*prompts_)}}};
    Measurements measurements(config_.out, question, group_);
    measure_all(measurements, batches(), "mitigate", group_);
    write_results(config_.out, summary(measurements.rows()), group_);
  }

 private:
  bool asked_for(const std::string& name) const {
    return std::any_of(methods_.begin(), methods_.end(), [&](const Mitigation* m) { return m->name == name; });
  }

  std::vector<UnitBatch> batches() {
    std::vector<UnitBatch> all;
    for (const auto& batch : drawings(prompts_->size(), config_.pictures, config_.batch_size)) {
      auto& units = all.emplace_back();
      for (const Mitigation* method : methods_)
        for (const Drawing& drawing : batch) units.units.push_back(unit_name(method->name, drawing));
      units.measure = [this, batch] { return measure(batch); };
    }
    return all;
  }

  std::vector<Json> measure(const std::vector<Drawing>& batch) {
    std::vector<Json> rows;
    at::Tensor plain;
    const at::Tensor known = known_pictures(batch);
    for (const Mitigation* method : methods_) {
      const Mitigated made = method->draw(batch, *prompts_, model_, options_);
      require_finite_rows(made.magnitude, "the magnitude", batch, *prompts_);
      const at::Tensor pictures = decoder_ ? decoder_->decode(made.drawn).cpu() : at::Tensor();
      if (!plain.defined()) plain = pictures;
      const at::Tensor to_plain = pictures.defined() ? correlation(pictures, plain) : at::Tensor();
      const at::Tensor to_known = known.defined() ? correlation(pictures, known) : at::Tensor();
      for (size_t i = 0; i < batch.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        Json row{{"set", "prompts"},
                 {"method", method->name},
                 {"prompt", batch[i].prompt},
                 {"picture_number", batch[i].picture},
                 {"magnitude", numbers(made.magnitude[at])}};
        if (to_plain.defined()) row["similarity_to_plain"] = to_plain[at].item<double>();
        if (to_known.defined()) row["similarity"] = to_known[at].item<double>();
        if (!made.notes.empty()) row.update(made.notes[i]);
        if (pictures.defined()) {
          row["picture"] = "pictures/" + unit_name(method->name, batch[i]) + ".png";
          write_picture(config_.out, row["picture"], pictures[at]);
        }
        rows.push_back(std::move(row));
      }
    }
    return rows;
  }

  /// [B, 3, H, W] uint8: the prompts' own pictures, where the file has some and they can be decoded.
  at::Tensor known_pictures(const std::vector<Drawing>& batch) {
    if (!prompts_->has_pictures() || !decoder_) return {};
    std::vector<int64_t> ids;
    for (const Drawing& drawing : batch) ids.push_back(drawing.prompt);
    return own_pictures(*prompts_, ids, *decoder_, model_.model.device());
  }

  /// Means are over prompts, since the drawings of one are not independent.
  Json summary_of(const std::string& method, const std::vector<Json>& rows) const {
    std::vector<double> similarity;
    PromptMeans first(prompts_->size()), all_steps(prompts_->size()), to_plain(prompts_->size()),
        to_known(prompts_->size());
    for (const Json& row : rows) {
      if (row.at("method") != method) continue;
      const auto prompt = row.at("prompt").get<int64_t>();
      const auto steps = row.at("magnitude").get<std::vector<double>>();
      first.add(prompt, steps.front());
      all_steps.add(prompt, mean_interval(steps).estimate);
      if (row.contains("similarity_to_plain")) to_plain.add(prompt, row["similarity_to_plain"]);
      if (!row.contains("similarity")) continue;
      to_known.add(prompt, row["similarity"]);
      similarity.push_back(row["similarity"]);
    }
    const auto interval = [](const PromptMeans& means, const std::string& name) {
      return as_json(mean_interval(means.values(name)));
    };
    Json entry{{"method", method},
               {"magnitude_first", interval(first, "magnitude")},
               {"magnitude_mean", interval(all_steps, "magnitude")}};
    if (!to_plain.empty()) entry["similarity_to_plain"] = interval(to_plain, "similarity_to_plain");
    if (similarity.empty()) return entry;
    const double copy = config_.settings.real("copy_similarity");
    const auto copies = std::count_if(similarity.begin(), similarity.end(), [&](double s) { return s >= copy; });
    entry["similarity"] = interval(to_known, "similarity");
    entry["copies"] = as_json(clopper_pearson(copies, static_cast<int64_t>(similarity.size())));
    return entry;
  }

  Json summary(const std::vector<Json>& rows) const {
    Json summary = summary_head(config_, model_);
    summary["copy_similarity"] = config_.settings.real("copy_similarity");
    for (const Mitigation* method : methods_) summary["methods"].push_back(summary_of(method->name, rows));
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
  std::vector<const Mitigation*> methods_;
  AuditedModel model_;
  std::optional<Prompts> prompts_;
  std::optional<PictureDecoder> decoder_;
  MitigationOptions options_;
};

}  // namespace

void add_mitigate_options(Options& options) {
  options
      .texts("methods", {"dynamic_guidance", "embedding"},
             "how to draw besides as it is: dynamic_guidance, embedding, random_tokens (prompts prepared with "
             "--random-tokens), attention (default: dynamic_guidance and embedding)")
      .real("target", 1.5, 0, 1e9,
            "of embedding: the magnitude of one picture at the first step that is low enough. Published: about 1.5 for "
            "Stable Diffusion 1 (3 for four pictures together); it means nothing for a model of another size or that "
            "predicts v or flow: there take one from `detect` on negatives")
      .real("learning_rate", 0.05, 1e-9, 1e3, "of embedding")
      .integer("updates", 10, 0, 1 << 20, "of embedding, at most")
      .real("first_token_scale", 1.25, 0, 1e3, "of attention: factor of the first token's logits; MemBench takes 1.1")
      .real("copy_similarity", 0.8, -1, 1,
            "correlation of pixels with the prompt's own picture from which a drawing counts as a copy")
      .incidental();
}

ExitCode mitigate(const AuditConfig& config, Group& group) {
  Comparison(config, group).run();
  return kDone;
}

}  // namespace memsieve::audit
