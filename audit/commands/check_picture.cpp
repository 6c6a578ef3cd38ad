#include <ATen/ATen.h>
#include <audit/commands/check_picture.h>
#include <audit/commands/inputs.h>
#include <audit/measure/check_summary.h>
#include <audit/measure/inversion.h>
#include <audit/measure/known_picture.h>
#include <audit/measure/mitigation.h>
#include <audit/measure/prediction_error.h>
#include <audit/output/results.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

#include <algorithm>
#include <charconv>

namespace memsieve::audit {

namespace {

void require_pictures(const Prompts& prompts) {
  if (prompts.has_pictures()) return;
  throw DataError(prompts.data().path() +
                  ": holds no pictures; name a data set of the pictures with their captions "
                  "(`memsieve prepare`), whose rows are the pictures to be checked");
}

void require_different(const std::string& path, const std::vector<uint64_t>& pictures, const std::string& held_out,
                       const std::vector<uint64_t>& others) {
  for (size_t i = 0; i < others.size(); ++i) {
    const auto same = std::find(pictures.begin(), pictures.end(), others[i]);
    if (same == pictures.end()) continue;
    throw DataError(held_out + ": row " + std::to_string(i) + " is the picture of row " +
                    std::to_string(same - pictures.begin()) + " of " + path +
                    "; held-out pictures must be others, which were never trained on");
  }
}

/// The pictures of one file that are measured.
struct CheckedSet {
  CheckedSet(PromptSet set_, std::vector<int64_t> rows_, std::vector<int64_t> drawn_)
      : set(std::move(set_)), rows(std::move(rows_)), drawn(std::move(drawn_)) {}
  PromptSet set;
  /// predicted, and of those drawn
  std::vector<int64_t> rows, drawn;
  /// of the keys of noise, so that no two pictures share theirs
  int64_t key(int64_t row) const { return set.stream == Stream::draw_noise ? row : -1 - row; }
};

class PictureCheck {
 public:
  PictureCheck(const AuditConfig& config, bool optimise, Group& group)
      : config_(config),
        group_(group),
        optimise_(optimise),
        model_(load_audited_model(config, group)),
        prompts_(open_prompts(config, model_, group)) {
    on_all_ranks(group, [&] { open_sets(); });
    decoder_ = picture_decoder(config, model_, *prompts_, group);
    inputs_.push_back(comparison_input(decoder_));
  }

  Json run() {
    Measurements measurements(config_.out, {config_.command, config_.settings, inputs_}, group_);
    warn_of_uncounted_inversion();
    measure_all(measurements, batches(), config_.command, group_);
    const Settings& s = config_.settings;
    Json summary = summary_head(config_, model_);
    summary["similarity"] = decoder_ ? "pixels" : "latents";
    summary["copy_similarity"] = s.real("copy_similarity");
    summary["optimisation"] = {{"steps", optimise_ ? s.integer("optimisation_steps") : 0},
                               {"batch", s.integer("optimisation_batch")},
                               {"learning_rate", s.real("learning_rate")},
                               {"start", s.text("start")}};
    summary["inversion"] = {{"steps", optimise_ ? s.integer("inversion_steps") : 0},
                            {"similarity", s.real("inversion_similarity")},
                            {"drawings", s.integer("inversion_drawings")},
                            {"guidance", s.integer("inversion_guidance")}};
    const auto captions = captions_of(*prompts_);
    for (const int64_t row : sets_.front().rows)
      summary["prompts"].push_back({{"prompt", row}, {"caption", captions[static_cast<size_t>(row)]}});
    add_verdicts(summary, measurements.rows());
    warn_of_uncounted_optimisation(summary);
    write_results(config_.out, summary, group_);
    return summary;
  }

 private:
  /// Before the search, which is long.
  void warn_of_uncounted_inversion() const {
    const int64_t inverted = sets_.size() > 1 ? static_cast<int64_t>(sets_.back().drawn.size()) : 0;
    const bool searched = optimise_ && config_.settings.integer("inversion_steps") > 0;
    if (group_.rank() != 0 || !searched || inverted >= kLeastHeldOutInverted) return;
    log_warning("noise is inverted for " + std::to_string(inverted) + " held-out pictures: with fewer than " +
                std::to_string(kLeastHeldOutInverted) +
                " it shows no picture to be copied; name more with --held-out, or raise held_out_drawn");
  }

  void warn_of_uncounted_optimisation(const Json& summary) const {
    const Json& drawn = summary.at("with_optimised_states");
    const Json& held_out = summary.at("held_out");
    const bool compared = held_out.is_object() && held_out.at("with_optimised_states").is_object();
    if (group_.rank() != 0 || compared || !drawn.is_object() || drawn.at("copies") == 0) return;
    log_warning(
        "optimised states drew copies, which do not count: no held-out picture was treated alike, so it is not known "
        "whether such states draw any picture at all; name some with --held-out");
  }

  void open_sets() {
    require_pictures(*prompts_);
    const auto hashes = picture_hashes(*prompts_);
    inputs_ = {
        {"model", model_.identity}, {"prompts", prompts_->identity()}, {"picture set", pictures_identity(hashes)}};
    const auto rows = chosen_rows(config_.settings, *prompts_);
    sets_.emplace_back(PromptSet{"prompts", *prompts_, Stream::draw_noise}, rows, rows);
    const std::string& path = config_.settings.text("held_out");
    if (path.empty() || !optimise_) {
      inputs_.emplace_back("held-out set", "none");
      return;
    }
    held_out_ = Prompts::open(path);
    require_pictures(*held_out_);
    prompts_->check_comparable(*held_out_);
    const auto others = picture_hashes(*held_out_);
    require_different(config_.prompts, hashes, path, others);
    inputs_.emplace_back("held-out set", held_out_->identity() + ", " + pictures_identity(others));
    const int64_t drawn = std::min(held_out_->size(), config_.settings.integer("held_out_drawn"));
    sets_.emplace_back(PromptSet{"held_out", *held_out_, Stream::negative_noise}, first_rows(held_out_->size()),
                       first_rows(drawn));
  }

  std::vector<UnitBatch> batches() {
    std::vector<UnitBatch> all;
    for (const CheckedSet& set : sets_) {
      const auto unit = [&set](int64_t row, const char* what) {
        return set.set.name + "/" + std::to_string(row) + "/" + what;
      };
      if (optimise_)
        for (const int64_t row : set.rows)
          all.push_back({{unit(row, "errors")}, [this, &set, row] { return std::vector<Json>{errors(set, row)}; }});
      for (const int64_t row : set.drawn)
        all.push_back({{unit(row, "drawings")}, [this, &set, row] { return std::vector<Json>{drawings(set, row)}; }});
      if (!optimise_ || config_.settings.integer("inversion_steps") == 0) continue;
      for (const int64_t row : set.drawn)
        all.push_back({{unit(row, "inversion")}, [this, &set, row] { return std::vector<Json>{inversion(set, row)}; }});
    }
    return all;
  }

  Json errors(const CheckedSet& set, int64_t row) {
    const int64_t draws = config_.settings.integer("error_draws");
    // One key for all pictures of all sets, so that they are treated alike.
    const auto found = prediction_errors(
        set.set.prompts.data(), {row},
        {.seed = config_.seed, .stream = Stream::picture_error_noise, .draws = draws, .rows = 2 * config_.batch_size},
        model_);
    return {{"set", set.set.name},
            {"prompt", row},
            {"timesteps", middle_timesteps(model_.schedule.num_timesteps(), draws)},
            {"errors", found.front()}};
  }

  Json drawings(const CheckedSet& set, int64_t row) {
    const Rows loaded = set.set.prompts.data().load({row});
    const at::Tensor own = shown(set, row, loaded.latents);
    Json found{{"set", set.set.name}, {"prompt", row}};
    if (decoder_) found["own"] = picture(set, row, "own", own[0]);
    found["caption"] = compared(set, row, "caption", loaded.condition.to(model_.model.device()), own);
    const Settings& s = config_.settings;
    const OptimisationOptions options{.seed = config_.seed,
                                      .steps = s.integer("optimisation_steps"),
                                      .batch = s.integer("optimisation_batch"),
                                      .learning_rate = s.real("learning_rate"),
                                      .from_empty = s.text("start") == "empty",
                                      .rows = 2 * config_.batch_size,
                                      .key = set.key(row)};
    if (!optimise_ || options.steps == 0) return found;
    const OptimisedStates states = optimise_states(row, set.set, model_, options);
    found["losses"] = states.losses;
    found["optimised"] = compared(set, row, "optimised", states.condition, own);
    return found;
  }

  Json inversion(const CheckedSet& set, int64_t row) {
    const Settings& s = config_.settings;
    const InversionOptions options{.seed = config_.seed,
                                   .steps = s.integer("inversion_steps"),
                                   .batch = s.integer("inversion_batch"),
                                   .learning_rate = s.real("learning_rate"),
                                   .every = s.integer("inversion_every"),
                                   .drawings = s.integer("inversion_drawings"),
                                   .guidance = s.integer("inversion_guidance"),
                                   .similarity = s.real("inversion_similarity"),
                                   .empty = s.text("start") == "empty",
                                   .rows = 2 * config_.batch_size,
                                   .key = set.key(row)};
    const at::Tensor own = shown(set, row, set.set.prompts.data().load({row}).latents);
    const auto similarity = [&](const at::Tensor& drawn) { return similarity_to(own, pictures_of(drawn)); };
    const InvertedNoise found = invert_noise(row, set.set, model_, options, similarity);
    Json told{
        {"errors", found.errors},          {"divergences", found.divergences},
        {"weights", found.weights},        {"divergence", found.divergence ? Json(*found.divergence) : Json(nullptr)},
        {"drawings", found.drawings},      {"guidance", found.guidance},
        {"similarity", found.similarities}};
    if (found.drawn.defined()) add_pictures(told, set, row, "inverted", pictures_of(found.drawn));
    return {{"set", set.set.name}, {"prompt", row}, {"inversion", std::move(told)}};
  }

  /// Drawings as they are compared: pixels, or latents where there is no VAE.
  at::Tensor pictures_of(const at::Tensor& drawn) { return (decoder_ ? decoder_->decode(drawn) : drawn).cpu(); }

  static std::vector<double> similarity_to(const at::Tensor& own, const at::Tensor& pictures) {
    return numbers(correlation(pictures, own.expand_as(pictures)));
  }

  /// [1, ...]: the picture itself as drawings are compared with it.
  at::Tensor shown(const CheckedSet& set, int64_t row, const at::Tensor& latents) {
    if (!decoder_) return latents;
    return own_pictures(set.set.prompts, {row}, *decoder_, model_.model.device());
  }

  Json compared(const CheckedSet& set, int64_t row, const std::string& how, const Conditioning& condition,
                const at::Tensor& own) {
    const at::Tensor drawn =
        pictures_of(draw_with(condition, row, config_.pictures, set.set, model_, config_.seed, config_.batch_size));
    Json found{{"similarity", similarity_to(own, drawn)}};
    add_pictures(found, set, row, how, drawn);
    return found;
  }

  void add_pictures(Json& found, const CheckedSet& set, int64_t row, const std::string& how, const at::Tensor& drawn) {
    for (int64_t i = 0; decoder_ && i < drawn.size(0); ++i)
      found["pictures"].push_back(picture(set, row, how + "_" + std::to_string(i), drawn[i]));
  }

  std::string picture(const CheckedSet& set, int64_t row, const std::string& what, const at::Tensor& pixels) {
    std::string name = "pictures/" + set.set.name + "/" + std::to_string(row) + "/" + what + ".png";
    write_picture(config_.out, name, pixels);
    return name;
  }

  const AuditConfig& config_;
  Group& group_;
  bool optimise_;
  AuditedModel model_;
  std::optional<Prompts> prompts_, held_out_;
  std::vector<std::pair<std::string, std::string>> inputs_;
  std::vector<CheckedSet> sets_;
  std::optional<PictureDecoder> decoder_;
};

}  // namespace

std::vector<int64_t> chosen_rows(const Settings& settings, const Prompts& prompts) {
  const auto named = settings.texts("rows");
  if (named.empty()) return first_rows(prompts.size());
  std::vector<int64_t> rows;
  for (const std::string& text : named) {
    int64_t row = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), row);
    if (error != std::errc() || end != text.data() + text.size() || row < 0 || row >= prompts.size())
      throw ConfigError(settings.where("rows") + ": '" + text + "' is no row of " + prompts.data().path() +
                        ", which has 0 to " + std::to_string(prompts.size() - 1));
    if (std::count(rows.begin(), rows.end(), row) > 0)
      throw ConfigError(settings.where("rows") + ": " + text + " is named twice; keep one");
    rows.push_back(row);
  }
  return rows;
}

void add_check_picture_options(Options& options) {
  options.texts("rows", {}, "row of --prompts to be looked at; may be repeated (default: all)")
      .incidental()
      .text("held_out", "",
            "HDF5 file of pictures that were surely not trained on, from the same source: they are measured alike")
      .incidental()
      .integer("held_out_drawn", 19, 0, 1 << 20,
               "of those, optimised and drawn at most so many; the others are only "
               "predicted")
      .incidental()
      .integer("error_draws", 16, 1, 1 << 16, "timesteps at which a picture is predicted, evenly over all")
      .integer("optimisation_steps", 50, 0, 1 << 20,
               "updates of the caption's states on the picture's own loss; published: 50, and more than 500 for "
               "pictures that are not memorised; 0 = none")
      .integer("optimisation_batch", 8, 1, 1 << 16, "noises and timesteps of each of those updates")
      .real("learning_rate", 0.1, 1e-9, 1e3, "of those updates, and of those below, by Adam")
      .choice("start", "caption", {"caption", "empty"},
              "the states that they start from, and that noise is inverted with")
      .integer("inversion_steps", 0, 0, 1 << 20,
               "updates at most by which noise is sought that draws the picture (Ma et al.; costly); published: 2000; "
               "0 = not at all")
      .integer("inversion_batch", 16, 1, 1 << 16, "noises and timesteps of each of those updates")
      .integer("inversion_every", 50, 1, 1 << 20,
               "of those updates between two looks at what is drawn; the last is looked at, too")
      .integer("inversion_drawings", 8, 1, 1 << 16, "drawings of a look with each guidance")
      .integer("inversion_guidance", 7, 1, 100, "it draws with guidance 1, 2 ... up to this")
      .real("inversion_similarity", 0.8, -1, 1,
            "similarity that all drawings of one guidance must reach to end the search; published: 0.5 by SSCD")
      .real("copy_similarity", 0.8, -1, 1,
            "correlation with the picture (of pixels; of latents where there is no VAE) from which a drawing counts as "
            "a copy")
      .incidental();
}

Json check_pictures(const AuditConfig& config, bool optimise, Group& group) {
  return PictureCheck(config, optimise, group).run();
}

ExitCode check_picture(const AuditConfig& config, Group& group) {
  const Json summary = check_pictures(config, true, group);
  for (const Json& prompt : summary.at("prompts"))
    log_info("picture " + std::to_string(prompt.at("prompt").get<int64_t>()) + ": " +
             prompt.at("verdict").get<std::string>());
  return kDone;
}

}  // namespace memsieve::audit
