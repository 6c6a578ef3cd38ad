#pragma once
// Attention over the pixels of a feature map, and from pixels to text.

#include <diffusion/models/common/layers.h>

#include <functional>

namespace memsieve::diffusion {

/// softmax(q k' / sqrt(d)) v: q [B, heads, N, d], k and v [B, heads, M, d] -> like q. `bias` [B, M], like q in dtype,
/// is added to every row of the logits; undefined = none.
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias = {});

/// What is changed in the attention from pixels to text, by row and token: both [B, L] float32 on the model's device,
/// or undefined.
struct TextAttentionEdit {
  /// logits are multiplied by it
  at::Tensor scale;
  /// added to the logits; -inf = the token is not seen
  at::Tensor bias;
};

/// While one lives, models that run on this thread attend to text as `edit` says; forwards must then have its rows.
class EditTextAttention {
 public:
  explicit EditTextAttention(const TextAttentionEdit& edit);
  ~EditTextAttention();
  EditTextAttention(const EditTextAttention&) = delete;
  EditTextAttention& operator=(const EditTextAttention&) = delete;
};

/// Multi-head scaled dot-product attention (Vaswani et al., 2017). Self-attention when text_dim is 0.
class AttentionImpl : public torch::nn::Module {
 public:
  AttentionImpl(int64_t dim, int64_t heads, int64_t text_dim);
  /// x [B, N, dim]; context [B, L, text_dim], or x itself. Returns [B, N, dim].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& context);

 private:
  int64_t heads_;
  /// its context is text
  bool crosses_;
  Linear to_q_, to_k_, to_v_, to_out_{nullptr};
};

/// While one lives, every attention to text of a model that runs on this thread shows how its pixels look at the
/// tokens: softmax(q k' / sqrt(d)), TextAttentionEdit included, averaged over heads: [B, N, L] float32 that
/// needs no gradient.
class WatchTextAttention {
 public:
  using Seen = std::function<void(const AttentionImpl& layer, const at::Tensor& probabilities)>;
  explicit WatchTextAttention(Seen seen);
  ~WatchTextAttention();
  WatchTextAttention(const WatchTextAttention&) = delete;
  WatchTextAttention& operator=(const WatchTextAttention&) = delete;

 private:
  Seen seen_;
};

class FeedForwardImpl;

/// While one lives, every FeedForward of a model that runs on this thread shows it what goes into its last layer: the
/// gated states [B, N, 4 * dim], in the dtype that the model computes in.
class WatchFeedForward {
 public:
  using Seen = std::function<void(const FeedForwardImpl& layer, const at::Tensor& gated)>;
  explicit WatchFeedForward(Seen seen);
  ~WatchFeedForward();
  WatchFeedForward(const WatchFeedForward&) = delete;
  WatchFeedForward& operator=(const WatchFeedForward&) = delete;

 private:
  Seen seen_;
};

/// Linear to twice 4 * dim, one half gated by GELU of the other, Linear back (Shazeer: "GLU Variants Improve
/// Transformer", 2020).
class FeedForwardImpl : public torch::nn::Module {
 public:
  explicit FeedForwardImpl(int64_t dim);
  at::Tensor forward(const at::Tensor& x);

 private:
  Linear in_{nullptr}, out_{nullptr};
};

/// Self-attention, cross-attention, feed-forward; each on the layer norm of its input, added to it.
class BasicTransformerBlockImpl : public CheckpointableImpl {
 public:
  BasicTransformerBlockImpl(int64_t dim, int64_t heads, int64_t text_dim);
  at::Tensor forward(const at::Tensor& x, const at::Tensor& text);

 private:
  at::Tensor compute(const at::Tensor& x, const at::Tensor& text);

  torch::nn::LayerNorm norm1_, norm2_, norm3_;
  std::shared_ptr<AttentionImpl> attn1_, attn2_;
  std::shared_ptr<FeedForwardImpl> ff_;
};

/// Transformer blocks over the H * W pixels of a feature map, between two projections, added to the input.
class Transformer2DModelImpl : public torch::nn::Module {
 public:
  struct Options {
    int64_t channels, heads, text_dim, layers, groups;
    /// the projections are stored as Linear, not as 1x1 convolutions
    bool linear_projection;
  };
  explicit Transformer2DModelImpl(const Options& options);
  /// x [B, channels, H, W], text [B, L, text_dim].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& text);

 private:
  torch::nn::GroupNorm norm_;
  Linear proj_in_, proj_out_;
  std::vector<std::shared_ptr<BasicTransformerBlockImpl>> blocks_;
};

}  // namespace memsieve::diffusion
