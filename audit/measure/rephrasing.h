#pragma once
// PRSS (Chen et al., with Bright Ending): another wording is drawn, and where that is strong, away from the prompt.

#include <audit/measure/mitigation.h>

#include <vector>

namespace memsieve::audit {

/// The rows of a prompt's prepared wordings. Throws DataError where there is none.
std::vector<int64_t> wordings_of(const Prompts& prompts, int64_t prompt);

/// Pictures whose first magnitude is at most `rephrased_target` are drawn plainly. Of the others the first prepared
/// wording at or below it is taken, for its own noise, else the lowest. Then, with s the guidance, p the prompt's
/// prediction, w the wording's and n that of the empty caption: in steps with m = || w - n ||_2 above repulsion_from
/// (a) the prediction is p + s' (w - p) + (s - s') (w - n), s' = min(s, s (m - k) / (b - k)), b being repulsion_full
/// and k = (a s - b) / (s - 1), so that s' grows from 1 at a to s at b; in other steps it is guided as ever. The
/// magnitude told is m. notes: {"caption": the wording}, null for those drawn plainly. Only for a guidance above 1.
Mitigated draw_rephrased(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                         const MitigationOptions& options);

}  // namespace memsieve::audit
