#pragma once
// summary.json, pictures/ and page.html of an audit's folder.

#include <ATen/core/Tensor.h>
#include <audit/data/prompts.h>
#include <audit/model/audited_model.h>
#include <audit/output/measurements.h>
#include <audit/statistics/intervals.h>
#include <diffusion/models/vae/picture_decoder.h>

#include <optional>
#include <string>
#include <utility>

namespace memsieve::audit {

/// What every summary begins with: the command, the model and how pictures were drawn.
Json summary_head(const AuditConfig& config, const AuditedModel& model);

/// {"estimate", "low", "high"}.
Json as_json(const Interval& interval);

/// Writes FOLDER/summary.json whole, then FOLDER/page.html by `memsieve audit-page` where that and its Python can be
/// run, else says how to. COLLECTIVE: rank 0 writes. DataError.
void write_results(const std::string& folder, const Json& summary, Group& group);

/// COLLECTIVE (agreement on errors). Decodes what is drawn for such prompts; nothing for latents without a VAE, which
/// it says. Throws ConfigError, DataError.
std::optional<PictureDecoder> picture_decoder(const AuditConfig& config, const AuditedModel& model,
                                              const Prompts& prompts, Group& group);

/// How drawings are compared, for Question::inputs: correlations of latents are none of pixels.
std::pair<std::string, std::string> comparison_input(const std::optional<PictureDecoder>& decoder);

/// Writes one picture [3, H, W] uint8 to FOLDER/`name`, making the folder that it lies in. DataError.
void write_picture(const std::string& folder, const std::string& name, const at::Tensor& picture);

}  // namespace memsieve::audit
