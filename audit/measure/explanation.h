#pragma once
// Which words make a model remember (Wen et al., ICLR 2024, section 4).

#include <audit/measure/drawing.h>
#include <audit/model/audited_model.h>
#include <audit/output/measurements.h>

#include <vector>

namespace memsieve::audit {

/// A row for each drawing:
///   magnitude  [steps]: as in detection.h, at the steps taken
///   gradient   [steps][L]: || d magnitude / d e_i ||_2 at each step, e_i the state of token i
/// Every picture has a magnitude and a gradient of its own, and every step is guided as in drawing; the published code
/// takes the norm over all pictures at once, and guides away from the prompt beyond the first step. The gradient is
/// that to the text encoder's output, so to a token with all that the encoder put into its state.
/// Throws NonFiniteError.
std::vector<Json> explain_drawings(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                   uint64_t seed, int64_t steps);

/// The magnitude at the first step of each drawing, from noise of `stream`.
std::vector<double> first_magnitudes(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                     uint64_t seed, Stream stream);

}  // namespace memsieve::audit
