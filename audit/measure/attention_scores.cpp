#include <ATen/ATen.h>
#include <audit/measure/attention_scores.h>
#include <audit/measure/layer_names.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

/// [..., L] -> the terms of the entropy, -p ln p.
at::Tensor entropy_terms(const at::Tensor& p) {
  return -at::xlogy(p, p);
}

/// Each way down halves height and width, rounding up. {0, 0} if no such size has so many pixels.
std::pair<int64_t, int64_t> size_of(int64_t pixels, int64_t height, int64_t width) {
  while (height * width > pixels && height * width > 1) {
    height = (height + 1) / 2;
    width = (width + 1) / 2;
  }
  return height * width == pixels ? std::pair{height, width} : std::pair<int64_t, int64_t>{0, 0};
}

/// [B, N] -> [B, 1, H, W]; undefined if N is no size on the way down.
at::Tensor enlarged(const at::Tensor& mask, int64_t height, int64_t width) {
  const auto [rows, columns] = size_of(mask.size(1), height, width);
  if (rows == 0) return {};
  return at::upsample_nearest2d(mask.view({mask.size(0), 1, rows, columns}), {height, width});
}

at::Tensor last_mean(const std::vector<at::Tensor>& steps) {
  const auto late = static_cast<int64_t>(std::min(steps.size(), kLateSteps));
  return at::stack(std::vector<at::Tensor>(steps.end() - late, steps.end())).mean(0);
}

}  // namespace

AttentionScores::AttentionScores(torch::nn::Module& model, const std::vector<int64_t>& end_tokens)
    : names_(layer_names<AttentionImpl>(model)),
      end_tokens_(at::tensor(end_tokens, at::kLong).view({-1, 1})),
      watch_([this](const AttentionImpl& layer, const at::Tensor& probabilities) { look(layer, probabilities); }) {}

void AttentionScores::look(const AttentionImpl& layer, const at::Tensor& probabilities) {
  const int64_t drawings = end_tokens_.size(0), pixels = probabilities.size(1), tokens = probabilities.size(2);
  const at::Tensor captioned = probabilities.narrow(0, drawings, drawings);
  end_tokens_ = end_tokens_.to(probabilities.device());
  layers_.push_back(captioned.mean(1));
  if (names_.at(&layer).rfind("down_blocks.", 0) != 0) return;
  // The highest resolution comes first.
  if (!endings_.empty() && endings_.front().size(1) != pixels) return;
  const at::Tensor place = end_tokens_.clamp_max(tokens - 1).unsqueeze(2).expand({drawings, pixels, 1});
  endings_.push_back(captioned.gather(2, place).squeeze(2));
}

void AttentionScores::end_step(const at::Tensor& difference) {
  if (layers_.size() >= 4 && entropy_.empty()) first_ = entropy_terms(layers_[3]).sum(1);
  const at::Tensor terms = entropy_terms(at::stack(layers_).mean(0));
  const at::Tensor behind = at::arange(terms.size(1), end_tokens_.options()).ge(end_tokens_);
  entropy_.push_back(terms.sum(1));
  end_entropy_.push_back((terms * behind).sum(1));
  if (!endings_.empty()) {
    mask_ = at::stack(endings_).mean(0);
    differences_.push_back(difference.detach());
  }
  layers_.clear();
  endings_.clear();
}

AttentionFindings AttentionScores::findings() const {
  AttentionFindings found;
  found.entropy = at::stack(entropy_, 1).cpu();
  found.end_entropy = at::stack(end_entropy_, 1).cpu();
  found.late = (last_mean(entropy_) + last_mean(end_entropy_) - end_entropy_.front()).cpu();
  if (first_.defined()) found.first = first_.cpu();
  if (differences_.empty()) return found;
  const at::Tensor mask = enlarged(mask_, differences_.front().size(2), differences_.front().size(3));
  if (!mask.defined()) return found;
  std::vector<at::Tensor> masked;
  for (const at::Tensor& difference : differences_)
    masked.push_back((difference * mask).flatten(1).norm(2, {1}) / mask.flatten(1).mean(1));
  found.masked_magnitude = at::stack(masked, 1).cpu();
  return found;
}

}  // namespace memsieve::audit
