#pragma once
// Drawing so that a memorised picture does not come out.

#include <audit/measure/drawing.h>
#include <audit/model/audited_model.h>
#include <audit/output/measurements.h>
#include <diffusion/models/common/attention.h>

#include <functional>
#include <string>
#include <vector>

namespace memsieve::audit {

/// What a way of drawing gave.
struct Mitigated {
  /// [B, C, H, W] float32
  at::Tensor drawn;
  /// [B, steps] float32: the magnitude at each step
  at::Tensor magnitude;
  /// what else is told of each picture; {} = nothing
  std::vector<Json> notes;
};

struct MitigationOptions {
  uint64_t seed = 0;
  /// of the noise
  Stream stream = Stream::draw_noise;
  /// of `embedding`: magnitude of one picture at which it stops, learning rate, updates at most
  double target = 1.5, learning_rate = 0.05;
  int64_t updates = 10;
  /// of `attention`: what the first token's logits are multiplied by
  double first_token_scale = 1.25;
  /// of `rephrased` (audit/measure/rephrasing.h)
  double rephrased_target = 1, repulsion_from = 3, repulsion_full = 5;
};

/// The prompt as it is.
Mitigated draw_plainly(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                       const MitigationOptions& options);

/// Jain et al., "Classifier-Free Guidance inside the Attraction Basin May Cause Memorization" (2024): guidance 1 until
/// the picture's magnitude has its first local minimum, d[j-2] > d[j-1] < d[j], and from step j on the guidance asked
/// for. Costs nothing. notes: {"guided_from": j}, or null where there was no minimum and it was never guided.
Mitigated draw_with_dynamic_guidance(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                     const MitigationOptions& options);

/// Wen et al., ICLR 2024, section 5: before drawing, the caption's states are moved by AdamW (weight decay 0.01) until
/// the first step's magnitude is at most `target`, looked at before every update, or `updates` have been made. The
/// first token's states stay. Each picture has states, a target and an optimiser of its own (the published code: one
/// norm over all pictures of a prompt). notes: {"losses": magnitude before each update}.
Mitigated draw_with_moved_states(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                 const MitigationOptions& options);

/// Somepalli et al., 2023: the prompt with random tokens, of which `memsieve prompts` made variants; picture i takes
/// variant i, counted round. notes: {"caption": the variant}. Throws DataError for a prompt without variants.
Mitigated draw_with_random_tokens(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                  const MitigationOptions& options);

/// Ren et al., ECCV 2024: in the attention from pixels to text the first token's logits of captioned rows are
/// multiplied by first_token_scale, and no row sees what comes behind the prompt's first end token. Throws
/// DataError for prompts without tokens.
Mitigated draw_with_edited_attention(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                     const MitigationOptions& options);

/// The edit of such a batch: 2B rows, [null; captioned], L tokens.
TextAttentionEdit attention_edit(const std::vector<int64_t>& end_tokens, int64_t length, double first_token_scale,
                                 c10::Device device);

struct Mitigation {
  std::string name;
  std::function<Mitigated(const std::vector<Drawing>&, const Prompts&, AuditedModel&, const MitigationOptions&)> draw;
};

/// By name; "none" first.
const std::vector<Mitigation>& mitigations();

/// Throws DataError, as drawing would, unless prompts `rows` have what all of the methods need.
void require_drawable(const std::vector<const Mitigation*>& methods, const Prompts& prompts,
                      const std::vector<int64_t>& rows);

/// [B, D] float32: values of pictures [B, ...], any dtype, less their mean and scaled to length 1: products of such
/// rows are Pearson's correlations.
at::Tensor unit_pixels(const at::Tensor& pictures);

/// [B] float32: Pearson's correlation of the pixels of pictures [B, 3, H, W] with others of the same shape, any dtype.
at::Tensor correlation(const at::Tensor& pictures, const at::Tensor& others);

}  // namespace memsieve::audit
