#include <audit/commands/detect.h>
#include <audit/commands/inputs.h>
#include <audit/measure/detection.h>
#include <audit/measure/scores.h>
#include <audit/output/results.h>
#include <audit/statistics/roc.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// The files that are measured; `negatives` is absent where none are named.
struct Inputs {
  std::optional<Prompts> prompts, negatives;
  std::vector<std::pair<std::string, std::string>> identities;
};

Inputs open_inputs(const AuditConfig& config, AuditedModel& model, Group& group) {
  Inputs inputs;
  inputs.prompts = open_prompts(config, model, group);
  on_all_ranks(group, [&] {
    inputs.identities = {{"model", model.identity},
                         {"prompts", inputs.prompts->identity()},
                         {"picture set", pictures_identity(*inputs.prompts)}};
    const std::string& negatives = config.settings.text("negatives");
    if (negatives.empty()) return;
    inputs.negatives = Prompts::open(negatives);
    inputs.prompts->check_comparable(*inputs.negatives);
    inputs.identities.emplace_back("negatives", inputs.negatives->identity());
    inputs.identities.emplace_back("negatives' picture set", pictures_identity(*inputs.negatives));
  });
  return inputs;
}

class Detection {
 public:
  Detection(const AuditConfig& config, Group& group)
      : config_(config),
        group_(group),
        model_(load_audited_model(config, group)),
        inputs_(open_inputs(config, model_, group)) {
    const int64_t first = config.settings.integer("first_steps");
    options_ = {.seed = config.seed,
                .first_steps = first == 0 || first >= config.steps ? -1 : first,
                .cosine = config.settings.boolean("cosine"),
                .attention = config.settings.boolean("attention"),
                .folder = config.out};
    sets_.push_back({"prompts", *inputs_.prompts, Stream::draw_noise});
    if (inputs_.negatives) sets_.push_back({"negatives", *inputs_.negatives, Stream::negative_noise});
    if (options_.first_steps < 0) decoder_ = picture_decoder(config, model_, *inputs_.prompts, group);
  }

  void run() {
    Measurements measurements(config_.out, {config_.command, config_.settings, inputs_.identities}, group_);
    measure_all(measurements, batches(), "detect", group_);
    write_results(config_.out, summary(measurements.rows()), group_);
  }

 private:
  std::vector<UnitBatch> batches() {
    std::vector<UnitBatch> all;
    for (const PromptSet& set : sets_) {
      for (const auto& batch : drawings(set.prompts.size(), config_.pictures, config_.batch_size)) {
        auto& units = all.emplace_back();
        for (const Drawing& drawing : batch) units.units.push_back(unit_name(set.name, drawing));
        PictureDecoder* decoder = decoder_ && set.name == "prompts" ? &*decoder_ : nullptr;
        units.measure = [this, batch, &set, decoder] {
          return measure_drawings(batch, set, model_, decoder, options_);
        };
      }
      add_gains(set, all);
    }
    return all;
  }

  void add_gains(const PromptSet& set, std::vector<UnitBatch>& all) {
    const int64_t draws = config_.settings.integer("caption_gain_draws");
    if (draws == 0 || !set.prompts.has_pictures()) return;
    for (int64_t prompt = 0; prompt < set.prompts.size(); ++prompt) {
      all.push_back({{set.name + "/" + std::to_string(prompt) + "/gain"}, [this, &set, prompt, draws] {
                       const double gain = caption_gain(prompt, set, model_, config_.seed, draws, config_.batch_size);
                       Json row{{"set", set.name}, {"prompt", prompt}, {"caption_gain", gain}};
                       return std::vector<Json>{std::move(row)};
                     }});
    }
  }

  Json summary(const std::vector<Json>& rows) const {
    Json summary = summary_head(config_, model_);
    const ScoreOptions options{.cosine_weight = config_.settings.real("cosine_weight")};
    const auto scores = scores_of(rows, "prompts", inputs_.prompts->size(), options);
    std::vector<PromptScore> negatives;
    if (inputs_.negatives) negatives = scores_of(rows, "negatives", inputs_.negatives->size(), options);
    const std::vector<std::string> captions = captions_of(*inputs_.prompts);
    for (size_t i = 0; i < captions.size(); ++i)
      summary["prompts"].push_back({{"prompt", i}, {"caption", captions[i]}});
    for (const PromptScore& score : scores) {
      summary["scores"][score.name] = {{"doc", score.doc}};
      for (size_t i = 0; i < captions.size(); ++i) summary["prompts"][i][score.name] = score.values[i];
      const auto other =
          std::find_if(negatives.begin(), negatives.end(), [&](const PromptScore& n) { return n.name == score.name; });
      if (other == negatives.end()) continue;
      summary["scores"][score.name].update(separation(score.values, other->values));
      const auto chances = p_values(score.values, other->values);
      for (size_t i = 0; i < captions.size(); ++i) summary["prompts"][i]["p_value"][score.name] = chances[i];
    }
    return summary;
  }

  const AuditConfig& config_;
  Group& group_;
  AuditedModel model_;
  Inputs inputs_;
  DetectionOptions options_;
  std::vector<PromptSet> sets_;
  std::optional<PictureDecoder> decoder_;
};

}  // namespace

void add_detect_options(Options& options) {
  options
      .text("negatives", "",
            "HDF5 file of prompts that are surely not memorised, of the same text encoder: scores are "
            "compared with theirs")
      .incidental()
      .integer("first_steps", 0, 0, 1 << 20,
               "draw only this many steps, without pictures; 1 = the first step's magnitude, with --cosine false at a "
               "fiftieth of the cost; 0 = all")
      .boolean("cosine", true, "also measure the cosine term (Asthana et al.): one step's work more")
      .boolean("attention", true,
               "also look at the attention to text (Ren et al., Chen et al.), for prompts that come with tokens")
      .real("cosine_weight", 2, 0, 1e3,
            "weight of the cosine beside the norm; published: 2 for Stable Diffusion 1, 0.1 "
            "for 2")
      .incidental()
      .integer("caption_gain_draws", 16, 0, 1 << 16,
               "noises with which the caption's gain is measured on the pictures "
               "that the prompts' file holds; 0 = not at all");
}

ExitCode detect(const AuditConfig& config, Group& group) {
  Detection(config, group).run();
  return kDone;
}

}  // namespace memsieve::audit
