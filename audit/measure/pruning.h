#pragma once
// Which weights a memorised prompt needs: Chavhan et al., "Memorized Images in Diffusion Models share a Subspace that
// can be Located and Deleted" (2024), with the score of Wanda (Sun et al., ICLR 2024).

#include <audit/measure/drawing.h>
#include <audit/model/audited_model.h>

#include <map>
#include <string>
#include <vector>

namespace memsieve::audit {

/// By name of a feed-forward, e.g. "mid_block.attentions.0.transformer_blocks.0.ff", [calls, 4 * dim] float64 on the
/// CPU: the sum of squares of each input of its last layer, over pixels and over the row without and the row with the
/// caption, every pixel's inputs scaled to length 1 before.
using FeedForwardSums = std::map<std::string, at::Tensor>;

struct FeedForwardOptions {
  uint64_t seed = 0;
  /// steps of drawing that are looked at; at most all
  int64_t calls = 10;
  /// draw with the empty caption from the prompt's noise
  bool empty = false;
};

/// The sums of each drawing of a batch, over its first steps. Noise is Stream::draw_noise's. Throws NonFiniteError.
std::vector<FeedForwardSums> feed_forward_sums(const std::vector<Drawing>& batch, const Prompts& prompts,
                                               AuditedModel& model, const FeedForwardOptions& options);

/// Adds `more` to `sums`, layer by layer; empty sums become `more`.
void add_sums(FeedForwardSums& sums, const FeedForwardSums& more);

/// [out, in] bool: the weights to be zeroed. Score of a weight at a call: |w_ij| * sqrt(sum_j). Of every output row the
/// floor(ratio * in) highest scores of `target`, as far as they are above those of `base`; the union over calls.
/// weight [out, in], target and base [calls, in], all on the CPU. Of equal scores any may be taken.
at::Tensor pruning_mask(const at::Tensor& weight, const at::Tensor& target, const at::Tensor& base, double ratio);

}  // namespace memsieve::audit
