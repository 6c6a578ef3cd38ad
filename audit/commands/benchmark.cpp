#include <ATen/ATen.h>
#include <audit/commands/benchmark.h>
#include <audit/commands/inputs.h>
#include <audit/commands/methods.h>
#include <audit/commands/picture_scores.h>
#include <audit/measure/benchmark_table.h>
#include <audit/measure/method_drawings.h>
#include <audit/output/results.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// A checkpoint that is compared.
struct Candidate {
  AuditConfig config;
  /// of what it is: its rows are found by it, so that checkpoints may be added to a benchmark that is finished
  std::string key;
  std::string prediction_type = {};
};

/// Prompts that are drawn.
struct DrawnSet {
  std::string name;
  const Prompts& prompts;
  std::vector<int64_t> rows;
  /// of its noise
  Stream stream;
  /// drawings are compared with all originals, not with those of their prompt
  bool of_all;
};

/// `path` as --model, or where it holds adapters alone as --lora upon --model.
AuditConfig compared_with(const AuditConfig& config, const std::string& path) {
  AuditConfig other = config;
  other.lora.clear();
  const bool adapters = holds_adapters(path);
  (adapters ? other.lora : other.model) = path;
  (adapters ? other.lora_key : other.model_key) = "compare";
  return other;
}

class Benchmark {
 public:
  Benchmark(const AuditConfig& config, Group& group)
      : config_(config),
        group_(group),
        drawn_{.methods = methods_of(config.settings), .options = mitigation_options(config), .folder = config.out} {
    open_candidates();
    on_all_ranks(group, [&] { open_sets(); });
    decoder_ = picture_decoder(config, *model_, *prompts_, group);
    if (decoder_) drawn_.decoder = &*decoder_;
    inputs_.push_back(comparison_input(decoder_));
    on_all_ranks(group, [&] {
      std::vector<const Prompts*> all;
      for (const DrawnSet& set : sets_) all.push_back(&set.prompts);
      scores_.emplace(config_, all, *originals_, drawn_.decoder, group_.device());
      const auto extractors = scores_->inputs();
      inputs_.insert(inputs_.end(), extractors.begin(), extractors.end());
    });
  }

  void run() {
    Measurements measurements(config_.out, {config_.command, config_.settings, inputs_}, group_);
    for (const Candidate& candidate : candidates_) {
      const auto batches = batches_of(candidate);
      const auto is_missing = [&](const UnitBatch& batch) {
        return std::any_of(batch.units.begin(), batch.units.end(),
                           [&](const std::string& unit) { return !measurements.has(unit); });
      };
      if (std::none_of(batches.begin(), batches.end(), is_missing)) continue;
      load(candidate);
      measure_all(measurements, batches, config_.command, group_);
    }
    const Json found = summary(measurements.rows());
    tell(found);
    write_results(config_.out, found, group_);
  }

 private:
  /// Opens every checkpoint once before anything is drawn, the first last, which stays.
  void open_candidates() {
    candidates_.push_back({.config = config_, .key = ""});
    for (const std::string& path : config_.settings.texts("compare"))
      candidates_.push_back({.config = compared_with(config_, path), .key = ""});
    for (size_t i = candidates_.size(); i-- > 0;) {
      Candidate& candidate = candidates_[i];
      load(candidate);
      prompts_ = open_prompts(candidate.config, *model_, group_);
      candidate.key = detail::in_hex(detail::fnv1a(model_->identity.data(), model_->identity.size()));
      candidate.prediction_type = model_->schedule.config().prediction_type;
      for (size_t j = i + 1; j < candidates_.size(); ++j)
        if (candidates_[j].key == candidate.key)
          throw ConfigError(config_.settings.where("compare") + ": " + name_of(candidates_[j]) +
                            " is the same model as " + name_of(candidate) + "; name it once");
    }
    head_ = summary_head(config_, *model_);
  }

  static std::string name_of(const Candidate& candidate) {
    return candidate.config.lora.empty() ? candidate.config.model : candidate.config.lora;
  }

  /// COLLECTIVE unless it is loaded.
  void load(const Candidate& candidate) {
    if (loaded_ == &candidate) return;
    model_.reset();
    model_.emplace(load_audited_model(candidate.config, group_));
    loaded_ = &candidate;
  }

  void open_sets() {
    const Settings& s = config_.settings;
    const auto rows = distinct_prompts(*prompts_);
    inputs_ = {{"prompts", prompts_->identity()}};
    const auto open_beside = [&](const std::string& key, std::optional<Prompts>& other) {
      inputs_.emplace_back(key, "none");
      if (s.text(key).empty()) return;
      other = Prompts::open(s.text(key));
      inputs_.back().second = other->identity();
    };
    open_beside("originals", originals_file_);
    if (originals_file_) prompts_->data().check_matches(originals_file_->data());
    const Prompts& pictures = originals_file_ ? *originals_file_ : *prompts_;
    originals_.emplace(*prompts_, rows, pictures);
    inputs_.emplace_back("picture set", pictures_identity(pictures));
    open_beside("general", general_);
    sets_.push_back({"prompts", *prompts_, rows, Stream::draw_noise, false});
    if (general_) {
      prompts_->check_comparable(*general_);
      sets_.push_back({"general", *general_, distinct_prompts(*general_), Stream::negative_noise, true});
    }
    for (const DrawnSet& set : sets_) require_drawable(drawn_.methods, set.prompts, set.rows);
  }

  MethodDrawings drawn_of(const Candidate& candidate, const DrawnSet& set) const {
    MethodDrawings drawn = drawn_;
    drawn.options.stream = set.stream;
    drawn.set = set.name;
    drawn.unit_prefix = candidate.key + "/";
    drawn.unit_suffix = "/" + set.name;
    return drawn;
  }

  std::vector<UnitBatch> batches_of(const Candidate& candidate) {
    std::vector<UnitBatch> all;
    for (const DrawnSet& set : sets_) {
      const MethodDrawings drawn = drawn_of(candidate, set);
      for (const auto& batch : drawings(set.rows, config_.pictures, config_.batch_size))
        all.push_back({units_of(batch, drawn), [this, &candidate, &set, drawn, batch] {
                         return draw_by_methods(batch, set.prompts, *model_, drawn,
                                                [&](const auto& drawings, const at::Tensor& shown, auto& rows) {
                                                  for (Json& row : rows) row["model"] = candidate.key;
                                                  scores_->add(set.prompts, set.of_all, drawings, shown, rows);
                                                });
                       }});
    }
    return all;
  }

  CopyLevels levels() const {
    return {.similarity = config_.settings.real("copy_similarity"), .sscd = config_.settings.real("sscd_copy")};
  }

  /// One row of the table, and each prompt's numbers to `prompts`. `first`: the numbers of the first row, by set, which
  /// the first call sets.
  Json entry(size_t candidate, const std::string& method, const std::vector<Json>& rows, Json& prompts,
             std::map<std::string, PromptNumbers>& first) const {
    Json entry{{"model", candidate}, {"method", method}};
    for (const DrawnSet& set : sets_) {
      std::vector<Json> of_set;
      read_rows(rows, [&](const Json& row) {
        if (row.at("model") == candidates_[candidate].key && row.at("method") == method && row.at("set") == set.name)
          of_set.push_back(row);
      });
      const PromptNumbers numbers = by_prompt(of_set, set.rows, levels());
      const auto before = first.find(set.name);
      entry[set.name] = benchmark_means(numbers, static_cast<int64_t>(of_set.size()),
                                        before == first.end() ? nullptr : &before->second);
      first.emplace(set.name, numbers);
      for (const auto& [column, values] : numbers)
        for (size_t i = 0; i < values.size(); ++i) prompts[set.name][i][column].push_back(values[i]);
    }
    return entry;
  }

  /// Of each set: the prompts, to which entry() adds a list for each column, a number for each row of the table.
  Json prompts() const {
    Json found;
    for (const DrawnSet& set : sets_) {
      const auto captions = captions_of(set.prompts);
      for (const int64_t row : set.rows) {
        Json prompt{{"prompt", row}, {"caption", captions[static_cast<size_t>(row)]}};
        if (!set.of_all) prompt["originals"] = originals_->of(row).size();
        found[set.name].push_back(std::move(prompt));
      }
    }
    return found;
  }

  Json summary(const std::vector<Json>& rows) const {
    Json summary = head_;
    summary["general_file"] = config_.settings.text("general");
    summary["originals"] = originals_->size();
    summary["similarity"] = decoder_ ? "pixels" : "latents";
    summary["copy_similarity"] = levels().similarity;
    summary["sscd_copy"] = levels().sscd;
    summary["extractors"] = scores_->extractors();
    for (const Candidate& candidate : candidates_)
      summary["models"].push_back({{"name", name_of(candidate)},
                                   {"key", candidate.key},
                                   {"model", candidate.config.model},
                                   {"lora", candidate.config.lora},
                                   {"ema", candidate.config.ema},
                                   {"prediction_type", candidate.prediction_type}});
    for (const BenchmarkColumn& column : benchmark_columns()) summary["columns"][column.name] = column.doc;
    Json of_prompts = prompts();
    std::map<std::string, PromptNumbers> first;
    for (size_t candidate = 0; candidate < candidates_.size(); ++candidate)
      for (const Mitigation* method : drawn_.methods)
        summary["table"].push_back(entry(candidate, method->name, rows, of_prompts, first));
    for (const DrawnSet& set : sets_) summary[set.name] = of_prompts[set.name];
    return summary;
  }

  /// The table's first columns.
  void tell(const Json& summary) const {
    if (group_.rank() != 0) return;
    for (const Json& row : summary.at("table")) {
      const Json& trigger = row.at("prompts");
      char text[160];
      const char* likeness = trigger.contains("sscd_max") ? "sscd" : "similarity";
      std::snprintf(text, sizeof text, "%s: largest likeness %.3f, copies %.3f",
                    row.at("method").get<std::string>().c_str(),
                    trigger.at(std::string(likeness) + "_max").at("estimate").get<double>(),
                    trigger.at(std::string(likeness) + "_share").at("estimate").get<double>());
      log_info(name_of(candidates_[row.at("model").get<size_t>()]) + ", " + text);
    }
  }

  const AuditConfig& config_;
  Group& group_;
  MethodDrawings drawn_;
  std::vector<Candidate> candidates_;
  std::optional<AuditedModel> model_;
  /// whose model_ is
  const Candidate* loaded_ = nullptr;
  Json head_;
  std::optional<Prompts> prompts_, originals_file_, general_;
  std::optional<Originals> originals_;
  std::vector<DrawnSet> sets_;
  std::optional<PictureDecoder> decoder_;
  std::optional<PictureScores> scores_;
  std::vector<std::pair<std::string, std::string>> inputs_;
};

}  // namespace

void add_benchmark_options(Options& options) {
  options
      .texts("compare", {},
             "another checkpoint, as --model names it, or with adapters upon that model; may be repeated. --ema and "
             "--scheduler hold for all of them")
      .incidental()
      .text("originals", "",
            "data set of the pictures that --prompts are known to reproduce, under the same captions "
            "(`memsieve prepare`); empty = the pictures in --prompts itself")
      .incidental()
      .text("general", "", "HDF5 file of ordinary prompts, to see what mitigations cost; empty = none are drawn")
      .incidental();
  add_method_options(options);
  add_extractor_options(options);
  options.real("sscd_copy", 0.5, -1, 1, "SSCD's cosine from which a drawing counts as a copy").incidental();
}

ExitCode benchmark(const AuditConfig& config, Group& group) {
  Benchmark(config, group).run();
  return kDone;
}

}  // namespace memsieve::audit
