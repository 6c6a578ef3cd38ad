#pragma once
// What `detect` measures of a drawing while it is drawn, and of a picture whose caption is known.

#include <audit/measure/drawing.h>
#include <audit/model/audited_model.h>
#include <audit/output/measurements.h>
#include <diffusion/models/vae/picture_decoder.h>

#include <string>
#include <vector>

namespace memsieve::audit {

/// A set of prompts that is measured.
struct PromptSet {
  /// "prompts", "negatives" or "held_out": what its units are named with
  std::string name;
  const Prompts& prompts;
  /// of its noise
  Stream stream;
};

struct DetectionOptions {
  uint64_t seed = 0;
  /// steps that are drawn; -1 = all, without which there are no pictures
  int64_t first_steps = -1;
  /// the cosine term: one forward of two rows more
  bool cosine = true;
  /// scores of the attention to text, for prompts with tokens
  bool attention = true;
  /// folder that pictures/ is written to
  std::string folder;
};

/// A row for each drawing:
///   magnitude  [steps]: || captioned - null ||_2 over C, H, W at each step, captioned and null being what the model
///              predicts (Wen et al., ICLR 2024)
///   cosine     of null and captioned - null over channels, averaged over pixels, at the third-last timestep on the
///              noise that drawing starts from (Asthana and others; constants from their code)
///   norm       their norm at the first timestep: the magnitude, for v_prediction times sqrt(a) / (1 - a)
///   picture    its file, where there is a decoder and all steps are drawn
/// and of the attention to text what the model and the steps drawn can tell (audit/measure/attention_scores.h):
///   entropy, end_entropy     [steps]
///   attention_entropy_first  AttentionFindings::first
///   attention_entropy, masked_magnitude   `late` and [steps], once all steps are drawn
/// Throws NonFiniteError.
std::vector<Json> measure_drawings(const std::vector<Drawing>& batch, const PromptSet& set, AuditedModel& model,
                                   PictureDecoder* decoder, const DetectionOptions& options);

/// How much the caption helps on the prompt's own picture: the mean over `draws` noises, at timesteps in the middle of
/// equal parts of all, of ln(error without caption) - ln(error with it), error = mean over C, H, W of squares (the
/// signal `caption_gain` of training; after CLiD, Zhai et al., arXiv 2405.14800). Noise keyed by (seed, prompt, draw);
/// at most `rows` draws at once.
double caption_gain(int64_t prompt, const PromptSet& set, AuditedModel& model, uint64_t seed, int64_t draws,
                    int64_t rows);

}  // namespace memsieve::audit
