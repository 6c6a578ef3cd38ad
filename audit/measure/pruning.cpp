#include <ATen/ATen.h>
#include <audit/measure/layer_names.h>
#include <audit/measure/pruning.h>
#include <diffusion/models/common/attention.h>

namespace memsieve::audit {

namespace {

/// [2B, N, in] -> [B, in] float64: of each drawing, without and with the caption.
at::Tensor squares_of(const at::Tensor& gated) {
  const at::Tensor h = gated.detach().to(at::kFloat);
  const at::Tensor unit = h / h.norm(2, {-1}, true).clamp_min(1e-12);
  const at::Tensor rows = unit.square().sum({1}, false, at::kDouble);
  const int64_t drawings = rows.size(0) / 2;
  return rows.narrow(0, 0, drawings) + rows.narrow(0, drawings, drawings);
}

}  // namespace

std::vector<FeedForwardSums> feed_forward_sums(const std::vector<Drawing>& batch, const Prompts& prompts,
                                               AuditedModel& model, const FeedForwardOptions& options) {
  DrawingStart start = start_of(prompts, batch, options.seed, Stream::draw_noise, model.model.device());
  if (options.empty) start.condition = start.condition.uncaptioned(start.null);
  const auto names = layer_names<FeedForwardImpl>(model.model.denoiser().module());
  std::map<std::string, std::vector<at::Tensor>> seen;
  const WatchFeedForward watch([&](const FeedForwardImpl& layer, const at::Tensor& gated) {
    seen[names.at(&layer)].push_back(squares_of(gated));
  });
  ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null, model.sampling,
              [&](const DrawStep& step) { return guided(step.null, step.captioned, model.sampling.guidance); },
              {.first_steps = options.calls});
  std::vector<FeedForwardSums> found(batch.size());
  for (const auto& [name, calls] : seen) {
    const at::Tensor sums = at::stack(calls, 1).cpu();  // [B, calls, in]
    require_finite_rows(sums, "what goes into " + name + ".net.2", batch, prompts);
    for (size_t i = 0; i < batch.size(); ++i) found[i][name] = sums[static_cast<int64_t>(i)].contiguous();
  }
  return found;
}

void add_sums(FeedForwardSums& sums, const FeedForwardSums& more) {
  for (const auto& [name, values] : more) {
    const auto there = sums.find(name);
    if (there == sums.end())
      sums[name] = values.clone();
    else
      there->second += values;
  }
}

at::Tensor pruning_mask(const at::Tensor& weight, const at::Tensor& target, const at::Tensor& base, double ratio) {
  const at::Tensor size = weight.detach().to(at::kDouble).abs();
  at::Tensor mask = at::zeros(weight.sizes(), at::kBool);
  const auto most = static_cast<int64_t>(ratio * static_cast<double>(weight.size(1)));
  if (most == 0) return mask;
  for (int64_t call = 0; call < target.size(0); ++call) {
    const at::Tensor score = size * target[call].sqrt(), other = size * base[call].sqrt();
    const at::Tensor highest = at::zeros(weight.sizes(), at::kBool).scatter(1, std::get<1>(score.topk(most, 1)), true);
    mask.logical_or_(highest.logical_and(score > other));
  }
  return mask;
}

}  // namespace memsieve::audit
