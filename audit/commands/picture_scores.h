#pragma once
// What `benchmark` measures of a drawing: how like it is to originals, and what the user's extractors say.

#include <audit/commands/originals.h>
#include <audit/config/audit_config.h>
#include <audit/measure/drawing.h>
#include <audit/measure/extractor.h>
#include <audit/output/measurements.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::audit {

/// sscd, clip, aesthetic and their presets.
void add_extractor_options(Options& options);

class PictureScores {
 public:
  /// Loads the extractors that the configuration names, and looks at the originals with them. `sets`: whatever prompts
  /// are drawn. `decoder` null: latents are compared, and extractors are refused. Throws ConfigError, DataError.
  PictureScores(const AuditConfig& config, const std::vector<const Prompts*>& sets, const Originals& originals,
                PictureDecoder* decoder, c10::Device device);

  /// Adds to the rows of a batch, as far as there is something to measure it with:
  ///   similarity  correlation with the nearest original: of the drawing's own prompt, or of all where `of_all`
  ///   sscd        cosine of SSCD's features with those of the nearest original, likewise
  ///   clip        cosine of CLIP's features of the drawing and of its prompt (of the prompt as it stands, whatever
  ///               variant was drawn)
  ///   aesthetic   the score
  void add(const Prompts& prompts, bool of_all, const std::vector<Drawing>& batch, const at::Tensor& shown,
           std::vector<Json>& rows) const;

  /// What the extractors are, for Question::inputs.
  std::vector<std::pair<std::string, std::string>> inputs() const;
  /// {"sscd": {"file", "preset", "width"}, ...} of those that were named.
  Json extractors() const;

 private:
  std::vector<double> nearest(const at::Tensor& features, const at::Tensor& of_originals, bool of_all,
                              const std::vector<Drawing>& batch) const;

  const Originals* originals_;
  std::optional<Extractor> sscd_, clip_, aesthetic_;
  /// of /clip_text of all sets
  std::string text_identity_ = "none";
  /// [K, D] of the originals
  at::Tensor pixels_, sscd_features_;
};

}  // namespace memsieve::audit
