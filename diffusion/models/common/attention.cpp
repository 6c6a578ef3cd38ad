#include <ATen/ops/conv2d.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <c10/core/GradMode.h>
#include <diffusion/models/common/attention.h>
#include <diffusion/models/common/group_norm.h>

#include <cmath>

namespace memsieve::diffusion {

namespace nn = torch::nn;

namespace {

nn::LayerNorm make_layer_norm(int64_t dim) {
  return nn::LayerNorm(nn::LayerNormOptions({dim}).eps(1e-5));
}

// [B, N, heads * d] -> [B, heads, N, d]
at::Tensor split_heads(const at::Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads}).transpose(1, 2);
}

// [B, N, in] -> [B, N, out]. torch's Linear on the CPU runs in MKL, which on AMD processors keeps to 256-bit vectors;
// the same map as a 1x1 convolution runs in oneDNN at up to twice the speed. For small weights the overhead eats the
// gain, and with one row torch has no oneDNN convolution.
at::Tensor token_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  if (!x.is_cpu() || x.scalar_type() != at::kFloat || x.size(0) == 1 || weight.numel() < 16384)
    return at::linear(x, weight, bias);
  const at::Tensor image = x.unsqueeze(1).permute({0, 3, 1, 2});
  return at::conv2d(image, weight.unsqueeze(2).unsqueeze(3), bias).permute({0, 2, 3, 1}).squeeze(1);
}

}  // namespace

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias) {
  if (bias.defined()) {
    const at::Tensor mask = bias.view({bias.size(0), 1, 1, bias.size(1)});
    return at::scaled_dot_product_attention(q, k, v, mask.expand({-1, q.size(1), q.size(2), -1}));
  }
  // torch's fused kernel for the CPU is slow where the size of a head is no multiple of 16 and there are many pixels;
  // zeros behind q, k and v change nothing.
  const int64_t dim = q.size(3);
  if (!q.is_cpu() || dim >= 16 || q.size(2) * k.size(2) < 16384) return at::scaled_dot_product_attention(q, k, v);
  const auto widen = [&](const at::Tensor& t) { return at::pad(t, {0, 16 - dim}); };
  return at::scaled_dot_product_attention(widen(q), widen(k), widen(v), {}, 0.0, false,
                                          1.0 / std::sqrt(static_cast<double>(dim)))
      .narrow(3, 0, dim);
}

namespace {

thread_local const TextAttentionEdit* text_attention_edit = nullptr;

}  // namespace

EditTextAttention::EditTextAttention(const TextAttentionEdit& edit) {
  text_attention_edit = &edit;
}
EditTextAttention::~EditTextAttention() {
  text_attention_edit = nullptr;
}

namespace {

thread_local const WatchTextAttention::Seen* text_attention_watch = nullptr;

// What attend() weighs v with, averaged over heads: [B, N, M].
at::Tensor mean_probabilities(const at::Tensor& q, const at::Tensor& k, const at::Tensor& bias) {
  const at::NoGradGuard no_grad;
  // Scaled first, or half precision may overflow.
  at::Tensor logits = at::matmul(q / std::sqrt(static_cast<double>(q.size(3))), k.transpose(2, 3)).to(at::kFloat);
  if (bias.defined()) logits = logits + bias.view({bias.size(0), 1, 1, bias.size(1)});
  return logits.softmax(3).mean(1);
}

}  // namespace

WatchTextAttention::WatchTextAttention(Seen seen) : seen_(std::move(seen)) {
  text_attention_watch = &seen_;
}
WatchTextAttention::~WatchTextAttention() {
  text_attention_watch = nullptr;
}

AttentionImpl::AttentionImpl(int64_t dim, int64_t heads, int64_t text_dim)
    : heads_(heads),
      crosses_(text_dim > 0),
      to_q_(register_module("to_q", Linear(dim, dim, LinearImpl::Form::no_bias))),
      to_k_(register_module("to_k", Linear(text_dim > 0 ? text_dim : dim, dim, LinearImpl::Form::no_bias))),
      to_v_(register_module("to_v", Linear(text_dim > 0 ? text_dim : dim, dim, LinearImpl::Form::no_bias))) {
  // Number 1 of to_out is a dropout in diffusers: no parameters.
  to_out_ = register_module("to_out", std::make_shared<NumberedImpl>())->add(0, Linear(dim, dim).ptr());
}

at::Tensor AttentionImpl::forward(const at::Tensor& x, const at::Tensor& context) {
  const at::Tensor q = split_heads(to_q_(x), heads_);
  at::Tensor keys = to_k_(context), bias;
  if (const TextAttentionEdit* edit = crosses_ ? text_attention_edit : nullptr) {
    // A logit is linear in its key.
    if (edit->scale.defined()) keys = keys * edit->scale.to(keys.scalar_type()).unsqueeze(2);
    if (edit->bias.defined()) bias = edit->bias.to(keys.scalar_type());
  }
  const at::Tensor k = split_heads(keys, heads_), v = split_heads(to_v_(context), heads_);
  if (crosses_ && text_attention_watch != nullptr) (*text_attention_watch)(*this, mean_probabilities(q, k, bias));
  const at::Tensor mixed = attend(q, k, v, bias);
  return to_out_(mixed.transpose(1, 2).reshape(x.sizes()));
}

namespace {

thread_local const WatchFeedForward::Seen* feed_forward_watch = nullptr;

}  // namespace

WatchFeedForward::WatchFeedForward(Seen seen) : seen_(std::move(seen)) {
  feed_forward_watch = &seen_;
}
WatchFeedForward::~WatchFeedForward() {
  feed_forward_watch = nullptr;
}

FeedForwardImpl::FeedForwardImpl(int64_t dim) {
  auto net = register_module("net", std::make_shared<NumberedImpl>());
  auto geglu = net->add(0, std::make_shared<NumberedImpl>());
  in_ = geglu->register_module("proj", Linear(dim, 8 * dim));
  out_ = net->add(2, Linear(4 * dim, dim).ptr());
}

at::Tensor FeedForwardImpl::forward(const at::Tensor& x) {
  const auto halves = in_->plus_adapter(token_linear(x, in_->weight, in_->bias), x).chunk(2, -1);
  const at::Tensor gated = halves[0] * at::gelu(halves[1]);
  if (feed_forward_watch != nullptr) (*feed_forward_watch)(*this, gated);
  return out_->plus_adapter(token_linear(gated, out_->weight, out_->bias), gated);
}

BasicTransformerBlockImpl::BasicTransformerBlockImpl(int64_t dim, int64_t heads, int64_t text_dim)
    : norm1_(register_module("norm1", make_layer_norm(dim))),
      norm2_(register_module("norm2", make_layer_norm(dim))),
      norm3_(register_module("norm3", make_layer_norm(dim))),
      attn1_(register_module("attn1", std::make_shared<AttentionImpl>(dim, heads, 0))),
      attn2_(register_module("attn2", std::make_shared<AttentionImpl>(dim, heads, text_dim))),
      ff_(register_module("ff", std::make_shared<FeedForwardImpl>(dim))) {}

at::Tensor BasicTransformerBlockImpl::forward(const at::Tensor& x, const at::Tensor& text) {
  return run([this](const auto& in) { return compute(in[0], in[1]); }, {x, text});
}

at::Tensor BasicTransformerBlockImpl::compute(const at::Tensor& x, const at::Tensor& text) {
  const at::Tensor normed = norm1_(x);
  at::Tensor h = x + attn1_->forward(normed, normed);
  h = h + attn2_->forward(norm2_(h), text);
  return h + ff_->forward(norm3_(h));
}

namespace {

// A linear map of channels, which SD 1.x stores as a 1x1 convolution.
Linear make_projection(const Transformer2DModelImpl::Options& o) {
  return Linear(o.channels, o.channels, o.linear_projection ? LinearImpl::Form::plain : LinearImpl::Form::convolution);
}

}  // namespace

Transformer2DModelImpl::Transformer2DModelImpl(const Options& o)
    : norm_(register_module("norm", nn::GroupNorm(nn::GroupNormOptions(o.groups, o.channels).eps(1e-6)))),
      proj_in_(register_module("proj_in", make_projection(o))),
      proj_out_(register_module("proj_out", make_projection(o))) {
  auto list = register_module("transformer_blocks", std::make_shared<NumberedImpl>());
  for (int64_t i = 0; i < o.layers; ++i)
    blocks_.push_back(list->add(i, std::make_shared<BasicTransformerBlockImpl>(o.channels, o.heads, o.text_dim)));
}

at::Tensor Transformer2DModelImpl::forward(const at::Tensor& x, const at::Tensor& text) {
  // In channels_last these permutes and reshapes are views.
  const std::vector<int64_t> pixels = {x.size(0), x.size(2) * x.size(3), x.size(1)};
  at::Tensor h = proj_in_->forward(group_norm(norm_, x, false).permute({0, 2, 3, 1}).reshape(pixels));
  for (auto& block : blocks_) h = block->forward(h, text);
  h = proj_out_->forward(h).view({x.size(0), x.size(2), x.size(3), x.size(1)}).permute({0, 3, 1, 2});
  return x + h;
}

}  // namespace memsieve::diffusion
