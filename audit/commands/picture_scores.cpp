#include <ATen/ATen.h>
#include <audit/commands/picture_scores.h>
#include <audit/measure/mitigation.h>
#include <memsieve/detail/hash.h>
#include <memsieve/error.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// Tried on two of `pictures`: a file that takes one at a time only is of no use.
std::optional<Extractor> extractor(const AuditConfig& config, const std::string& key, const at::Tensor& pictures,
                                   c10::Device device) {
  const Settings& s = config.settings;
  const std::string& path = s.text(key);
  if (path.empty()) return std::nullopt;
  const at::Tensor example = at::cat({pictures.narrow(0, 0, 1), pictures.narrow(0, pictures.size(0) - 1, 1)});
  return Extractor(s.where(key), path, preset_named(s.text(key + "_preset")), example, device);
}

void require_features(const Extractor& extractor) {
  if (extractor.width() > 1) return;
  throw DataError(extractor.path() +
                  ": answers one number for each picture, not a row of features; export the part of " +
                  "the model before its last layer");
}

/// Whether an image tower and the text features in the files belong together, as far as widths show it.
void require_text(const Extractor& clip, const std::vector<const Prompts*>& sets) {
  for (const Prompts* prompts : sets) {
    const at::Tensor& text = prompts->clip_text();
    const std::string& file = prompts->data().path();
    if (!text.defined())
      throw DataError(file +
                      ": has no /clip_text, which --clip compares drawings with; make the file with "
                      "`memsieve prompts --clip FOLDER`, naming the same CLIP model");
    if (text.size(1) != clip.width())
      throw DataError(clip.path() + ": answers " + std::to_string(clip.width()) +
                      " numbers for each picture, but /clip_text of " + file + " has " + std::to_string(text.size(1)) +
                      "; both must come from the same CLIP model, behind its projection");
  }
}

std::string text_identity(const std::vector<const Prompts*>& sets) {
  uint64_t hash = detail::kFnv1aStart;
  for (const Prompts* prompts : sets) {
    const at::Tensor text = prompts->clip_text().contiguous();
    hash = detail::fnv1a(text.const_data_ptr(), text.nbytes(), hash);
  }
  return detail::in_hex(hash);
}

void set_all(std::vector<Json>& rows, const std::string& name, const std::vector<double>& values) {
  for (size_t i = 0; i < rows.size(); ++i) rows[i][name] = values[i];
}

/// unit_pixels() of many pictures without float32 copies of all of them.
at::Tensor unit_pixels_in_parts(const at::Tensor& pictures) {
  const int64_t count = pictures.size(0), most = 16;
  at::Tensor all = at::empty({count, pictures[0].numel()}, pictures.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < count; begin += most) {
    const int64_t size = std::min(most, count - begin);
    all.narrow(0, begin, size).copy_(unit_pixels(pictures.narrow(0, begin, size)));
  }
  return all;
}

}  // namespace

void add_extractor_options(Options& options) {
  const auto add = [&](const std::string& key, const std::string& preset, const std::string& doc) {
    options.text(key, "", doc)
        .incidental()
        .choice(key + "_preset", preset, preset_names(), "how pictures are prepared for it (docs/audit_benchmark.md)")
        .incidental();
  };
  add("sscd", "sscd", "TorchScript file of a copy detector such as SSCD: pictures to features");
  add("clip", "clip",
      "TorchScript file of a CLIP model's image tower: pictures to features, compared with /clip_text of the prompts");
  add("aesthetic", "clip", "TorchScript file of an aesthetic predictor: pictures to one number each");
}

PictureScores::PictureScores(const AuditConfig& config, const std::vector<const Prompts*>& sets,
                             const Originals& originals, PictureDecoder* decoder, c10::Device device)
    : originals_(&originals) {
  const Settings& s = config.settings;
  for (const char* key : {"sscd", "clip", "aesthetic"})
    if (decoder == nullptr && !s.text(key).empty())
      throw ConfigError(s.where(key) +
                        ": looks at pictures, but there is nothing to decode latents with; name a VAE's "
                        "folder with --vae");
  const at::Tensor shown = originals.shown(decoder, device);
  sscd_ = extractor(config, "sscd", shown, device);
  if (sscd_) require_features(*sscd_);
  clip_ = extractor(config, "clip", shown, device);
  if (clip_) {
    require_features(*clip_);
    require_text(*clip_, sets);
    text_identity_ = text_identity(sets);
  }
  aesthetic_ = extractor(config, "aesthetic", shown, device);
  if (aesthetic_ && aesthetic_->width() != 1)
    throw DataError(aesthetic_->path() + ": answers " + std::to_string(aesthetic_->width()) +
                    " numbers for each picture; a score is one");
  pixels_ = unit_pixels_in_parts(shown);
  if (sscd_) sscd_features_ = sscd_->features(shown);
}

void PictureScores::add(const Prompts& prompts, bool of_all, const std::vector<Drawing>& batch, const at::Tensor& shown,
                        std::vector<Json>& rows) const {
  set_all(rows, "similarity", nearest(unit_pixels(shown), pixels_, of_all, batch));
  if (sscd_) set_all(rows, "sscd", nearest(sscd_->features(shown), sscd_features_, of_all, batch));
  if (clip_) {
    const at::Tensor text = prompts.clip_text().index_select(0, at::tensor(prompts_of(batch), at::kLong));
    set_all(rows, "clip", numbers(at::cosine_similarity(clip_->features(shown), text, 1)));
  }
  if (aesthetic_) set_all(rows, "aesthetic", numbers(aesthetic_->scores(shown)));
}

std::vector<double> PictureScores::nearest(const at::Tensor& features, const at::Tensor& of_originals, bool of_all,
                                           const std::vector<Drawing>& batch) const {
  if (of_all) return numbers(features.matmul(of_originals.t()).amax(1));
  std::vector<double> best;
  for (size_t i = 0; i < batch.size(); ++i) {
    const at::Tensor own = of_originals.index_select(0, at::tensor(originals_->of(batch[i].prompt), at::kLong));
    best.push_back(own.mv(features[static_cast<int64_t>(i)]).max().item<double>());
  }
  return best;
}

std::vector<std::pair<std::string, std::string>> PictureScores::inputs() const {
  const auto of = [](const std::optional<Extractor>& extractor) { return extractor ? extractor->identity() : "none"; };
  return {{"SSCD extractor", of(sscd_)},
          {"CLIP extractor", of(clip_)},
          {"CLIP text", text_identity_},
          {"aesthetic extractor", of(aesthetic_)}};
}

Json PictureScores::extractors() const {
  Json found = Json::object();
  const auto tell = [&](const char* name, const std::optional<Extractor>& extractor) {
    if (!extractor) return;
    found[name] = {{"file", extractor->path()}, {"preset", extractor->preset()}, {"width", extractor->width()}};
  };
  tell("sscd", sscd_);
  tell("clip", clip_);
  tell("aesthetic", aesthetic_);
  return found;
}

}  // namespace memsieve::audit
