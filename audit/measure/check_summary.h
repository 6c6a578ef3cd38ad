#pragma once
// From the rows of `check-picture` to what is said of each picture and of all.

#include <audit/output/measurements.h>

#include <cstdint>
#include <vector>

namespace memsieve::audit {

/// With fewer held-out pictures whose noise was inverted, inverted noise shows nothing.
constexpr int64_t kLeastHeldOutInverted = 19;

/// Completes a summary that has copy_similarity and `prompts` with the number of each picture. Of a picture:
///   log_error, p_error        mean over timesteps of ln(error); share of held-out pictures, itself among them, that
///                             are predicted as well
///   loss_begin, loss_end      mean of the first and the last ten losses of the optimisation
///   with_caption,             {"drawings", "copies", "best", "share": Clopper-Pearson}
///   with_optimised_states
///   p_similarity              share of held-out pictures, itself among them, that come as close with states optimised
///   divergence, p_divergence  of the noise that draws it, null if none was found; share of held-out pictures, itself
///                             among them, with one as small
///   verdict                   "copied" or "not shown by N drawings". A copy by optimised states counts only if
///                             held-out pictures were treated alike, and it is closer than any drawing of theirs; and
///                             inverted noise only if p_divergence is at most 0.05
/// Of all: the same counts over all drawings, `copied` (share of pictures), `held_out` (the same of held-out pictures)
/// and `error_separation` (audit/measure/scores.h).
void add_verdicts(Json& summary, const std::vector<Json>& rows);

}  // namespace memsieve::audit
