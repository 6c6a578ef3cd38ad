#pragma once
// What the attention from pixels to text says of drawings, looked at while they are drawn.

#include <ATen/core/Tensor.h>
#include <audit/audit_rooms.h>
#include <diffusion/models/common/attention.h>

#include <map>
#include <string>
#include <vector>

namespace memsieve::audit {

/// Of B drawings; on the CPU, undefined where it cannot be told. p: the attention of the captioned row to each token,
/// averaged over all layers, heads and pixels of one step; it sums to 1.
struct AttentionFindings {
  /// [B, steps] float32: -sum p ln p
  at::Tensor entropy;
  /// [B, steps] float32: the part of that sum from the first end token on
  at::Tensor end_entropy;
  /// [B] float32: Ren et al. (ECCV 2024), D: the mean of `entropy` over the last kLateSteps steps, plus by how much the
  /// same mean of `end_entropy` is above its value in the first step
  at::Tensor late;
  /// [B] float32: Ren et al., E: the entropy in the first step of the fourth layer alone, in the order of the forward
  at::Tensor first;
  /// [B, steps] float32: Bright Ending (Chen et al., ICLR 2025): || m (captioned - null) ||_2 / mean(m), m being the
  /// attention to the first end token in the last step seen, averaged over the layers on the way down at the highest
  /// resolution that attends to text (Stable Diffusion 1: the two of 64 x 64), enlarged to the latents
  at::Tensor masked_magnitude;
};

/// Published: 10 of 50.
inline constexpr size_t kLateSteps = 10;

/// While it lives, looks at a model's attention to text on this thread.
class AttentionScores {
 public:
  /// `end_tokens`: place of the first end token of each of B captions. Forwards must have 2B rows, [null; captioned].
  AttentionScores(torch::nn::Module& model, const std::vector<int64_t>& end_tokens);

  /// Ends a step, which is one forward since the last call. `difference` [B, C, H, W]: captioned - null.
  void end_step(const at::Tensor& difference);

  /// After at least one step.
  AttentionFindings findings() const;

 private:
  void look(const AttentionImpl& layer, const at::Tensor& probabilities);

  std::map<const AttentionImpl*, std::string> names_;
  at::Tensor end_tokens_;
  /// of the step that runs: [B, L] of each layer, and [B, N] of the layers that the mask is made of
  std::vector<at::Tensor> layers_, endings_;
  std::vector<at::Tensor> entropy_, end_entropy_, differences_;
  at::Tensor first_, mask_;
  WatchTextAttention watch_;
};

}  // namespace memsieve::audit
