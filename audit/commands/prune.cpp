#include <ATen/ATen.h>
#include <audit/commands/check_picture.h>
#include <audit/commands/inputs.h>
#include <audit/commands/prune.h>
#include <audit/measure/pruning.h>
#include <audit/output/results.h>
#include <c10/core/GradMode.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/io/safetensors.h>
#include <diffusion/models/diffusers/scheduler_file.h>
#include <diffusion/models/families.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace memsieve::audit {

namespace fs = std::filesystem;

namespace {

/// What weights are scored on: the prompts, or what they are compared with.
struct ScoredSet {
  std::string name;
  const Prompts* prompts = nullptr;
  bool empty = false;
};

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw DataError(folder.string() + ": cannot be made: " + error.message());
}

class Pruning {
 public:
  Pruning(const AuditConfig& config, Group& group)
      : config_(config),
        group_(group),
        model_(load_audited_model(config, group)),
        prompts_(open_prompts(config, model_, group)) {
    on_all_ranks(group, [&] { open_sets(); });
  }

  /// The summary without the check; what was pruned stands in that of rank 0, which writes it.
  Json run() {
    Measurements measurements(config_.out, {config_.command, config_.settings, inputs_}, group_);
    measure_all(measurements, batches(), "prune", group_);
    Json summary = summary_head(config_, model_);
    const auto captions = captions_of(*prompts_);
    for (const int64_t row : rows_)
      summary["prompts"].push_back({{"prompt", row}, {"caption", captions[static_cast<size_t>(row)]}});
    summary["calls"] = calls_;
    summary["ratio"] = config_.settings.real("ratio");
    summary["base"] = config_.settings.text("base");
    summary["pruned_model"] = pruned_folder();
    on_all_ranks(group_, [&] {
      if (group_.rank() == 0) write_pruned(summary);
    });
    return summary;
  }

  /// The model that was asked for and the pruned one, as check_pictures wants them.
  AuditConfig check_config(bool pruned) const {
    AuditConfig c = config_;
    c.command = "check-picture";
    c.out = config_.out + (pruned ? "/after" : "/before");
    if (!pruned) return c;
    c.model = pruned_folder();
    c.lora = "";
    c.ema = false;
    c.scheduler = "";
    if (!prompts_->data().codec()) c.vae = model_.vae;
    return c;
  }
  bool has_pictures() const { return prompts_->has_pictures(); }

 private:
  std::string pruned_folder() const { return config_.out + "/pruned"; }

  void open_sets() {
    const Settings& s = config_.settings;
    rows_ = chosen_rows(s, *prompts_);
    calls_ = std::min(s.integer("calls"), config_.steps);
    require_ratio();
    // Unlike other audits, whose prompts are looked at one by one: all together decide what is pruned.
    std::string numbers;
    for (const int64_t row : rows_) numbers += (numbers.empty() ? "" : ",") + std::to_string(row);
    inputs_ = {{"model", model_.identity}, {"prompts", prompts_->identity()}, {"rows", numbers}};
    sets_.push_back({"target", &*prompts_, false});
    const std::string& base = s.text("base");
    if (base.empty()) {
      inputs_.emplace_back("base", "the empty caption");
      sets_.push_back({"base", &*prompts_, true});
      return;
    }
    base_ = Prompts::open(base);
    prompts_->check_comparable(*base_);
    if (base_->size() != prompts_->size())
      throw DataError(base + ": has " + std::to_string(base_->size()) + " prompts, " + config_.prompts + " has " +
                      std::to_string(prompts_->size()) + "; each needs its own without the concept, in the same row");
    inputs_.emplace_back("base", base_->identity());
    sets_.push_back({"base", &*base_, false});
  }

  void require_ratio() {
    int64_t widest = 0;
    for (const auto& item : model_.model.denoiser().module().named_parameters())
      if (item.key().ends_with(".ff.net.2.weight")) widest = std::max(widest, item.value().size(1));
    if (widest == 0)
      throw ConfigError(config_.settings.where("model") + ": has no feed-forward whose weights are scored");
    if (config_.settings.real("ratio") * static_cast<double>(widest) < 1)
      throw ConfigError(config_.settings.where("ratio") + ": is less than one of the " + std::to_string(widest) +
                        " inputs of the widest layer; raise it");
  }

  std::string sums_file(const std::string& set, int64_t row) const {
    return "activations/" + set + "_" + std::to_string(row) + ".safetensors";
  }

  std::vector<UnitBatch> batches() {
    std::vector<UnitBatch> all;
    const auto most = static_cast<size_t>(config_.batch_size);
    for (const ScoredSet& set : sets_)
      for (size_t begin = 0; begin < rows_.size(); begin += most) {
        auto& units = all.emplace_back();
        std::vector<Drawing> batch;
        for (size_t i = begin; i < std::min(rows_.size(), begin + most); ++i) {
          batch.push_back({.prompt = rows_[i], .picture = 0});
          units.units.push_back(set.name + "/" + std::to_string(rows_[i]));
        }
        units.measure = [this, &set, batch] { return measure(set, batch); };
      }
    return all;
  }

  std::vector<Json> measure(const ScoredSet& set, const std::vector<Drawing>& batch) {
    const auto sums =
        feed_forward_sums(batch, *set.prompts, model_, {.seed = config_.seed, .calls = calls_, .empty = set.empty});
    make_folder(fs::path(config_.out) / "activations");
    std::vector<Json> rows;
    for (size_t i = 0; i < batch.size(); ++i) {
      const std::string name = sums_file(set.name, batch[i].prompt);
      save_safetensors((fs::path(config_.out) / name).string(), {sums[i].begin(), sums[i].end()});
      rows.push_back({{"set", set.name}, {"prompt", batch[i].prompt}, {"activations", name}});
    }
    return rows;
  }

  FeedForwardSums total_of(const std::string& set) const {
    FeedForwardSums total;
    for (const int64_t row : rows_) {
      const TensorMap one = load_safetensors((fs::path(config_.out) / sums_file(set, row)).string());
      add_sums(total, {one.begin(), one.end()});
    }
    return total;
  }

  void write_pruned(Json& summary) const {
    const c10::NoGradGuard no_grad;
    const FeedForwardSums target = total_of("target"), base = total_of("base");
    // Read again: under mixed precision the model in memory has lost digits.
    const std::unique_ptr<Denoiser> denoiser = load_denoiser(model_.weights);
    if (!model_.adapters.empty())
      Lora::load(denoiser->module(), model_.adapters, denoiser->component()).merge(denoiser->module());
    const auto weights = denoiser->module().named_parameters();
    int64_t pruned = 0, all = 0;
    for (const auto& item : weights) all += item.value().numel();
    for (const auto& [layer, sums] : target) {
      at::Tensor weight = weights[layer + ".net.2.weight"].detach();
      const at::Tensor mask = pruning_mask(weight, sums, base.at(layer), config_.settings.real("ratio"));
      weight.masked_fill_(mask, 0);
      const auto zeroed = mask.sum().item<int64_t>();
      pruned += zeroed;
      summary["layers"].push_back({{"layer", layer}, {"weights", weight.numel()}, {"pruned", zeroed}});
    }
    if (pruned == 0)
      throw ConfigError(
          config_.settings.where("ratio") +
          ": no weight among so few is needed more by the prompts than by what they are compared with; raise it");
    summary["pruned_weights"] = pruned;
    summary["weights"] = all;
    make_folder(fs::path(pruned_folder()) / "scheduler");
    denoiser->save((fs::path(pruned_folder()) / denoiser->component()).string());
    write_text_atomically((fs::path(pruned_folder()) / "scheduler" / "scheduler_config.json").string(),
                          scheduler_json(model_.schedule.config(), model_.sampling));
  }

  const AuditConfig& config_;
  Group& group_;
  AuditedModel model_;
  std::optional<Prompts> prompts_, base_;
  std::vector<std::pair<std::string, std::string>> inputs_;
  std::vector<ScoredSet> sets_;
  std::vector<int64_t> rows_;
  int64_t calls_ = 0;
};

/// What of a check's summary is told beside another's.
Json told(const Json& check) {
  Json found;
  for (const char* name :
       {"copied", "with_caption", "with_optimised_states", "held_out", "inversion", "copy_similarity"})
    found[name] = check.at(name);
  return found;
}

/// The same prompts before and after. The first model is no longer held, so that there is room for another.
void add_check(Json& summary, const std::pair<AuditConfig, AuditConfig>& before_and_after, Group& group) {
  const Json before = check_pictures(before_and_after.first, /*optimise=*/false, group);
  const Json after = check_pictures(before_and_after.second, /*optimise=*/true, group);
  summary["before"] = told(before);
  summary["after"] = told(after);
  for (size_t i = 0; i < summary["prompts"].size(); ++i) {
    summary["prompts"][i]["before"] = before.at("prompts").at(i).at("with_caption");
    summary["prompts"][i]["after"] = after.at("prompts").at(i).at("with_caption");
    const Json& checked = after.at("prompts").at(i);
    summary["prompts"][i]["recovered"] = checked.at("with_optimised_states");
    summary["prompts"][i]["verdict"] = checked.at("verdict");
    for (const char* name : {"divergence", "p_divergence"})
      if (checked.contains(name)) summary["prompts"][i][name] = checked.at(name);
  }
}

}  // namespace

void add_prune_options(Options& options) {
  options
      .text(
          "base", "",
          "HDF5 file of prompts without the concept, row by row beside --prompts with it ('a cat' beside 'a cat in the "
          "style of Van Gogh'); empty = the empty caption, as for memorised prompts")
      .incidental()
      .real("ratio", 0.01, 0, 1,
            "share of each output's inputs that is looked at in each of the first steps; published: 0.01, for objects "
            "0.02")
      .integer("calls", 10, 1, 1 << 20, "first steps of drawing whose weights are taken together; published: 10, or 9")
      .boolean("check", true,
               "draw with both models and check whether the pictures come back, where --prompts has them")
      .incidental();
  add_check_picture_options(options);
}

ExitCode prune(const AuditConfig& config, Group& group) {
  Json summary;
  std::optional<std::pair<AuditConfig, AuditConfig>> checks;
  {
    Pruning pruning(config, group);
    summary = pruning.run();
    const bool asked = config.settings.boolean("check");
    if (asked && pruning.has_pictures()) checks = {pruning.check_config(false), pruning.check_config(true)};
    if (asked && !checks && group.rank() == 0)
      log_warning(config.prompts + ": holds no pictures, so it is not checked whether they come back");
  }
  if (checks) add_check(summary, *checks, group);
  write_results(config.out, summary, group);
  return kDone;
}

}  // namespace memsieve::audit
