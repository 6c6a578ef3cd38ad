#include <ATen/ATen.h>
#include <audit/measure/attention_scores.h>
#include <audit/measure/detection.h>
#include <audit/measure/prediction_error.h>
#include <audit/output/results.h>
#include <c10/core/GradMode.h>
#include <memsieve/error.h>
#include <memsieve/signal.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace memsieve::audit {

namespace {

double signal_level(const NoiseSchedule& schedule, double timestep) {
  return schedule.alphas_cumprod()[static_cast<int64_t>(timestep)].item<double>();
}

/// [B]: cosine of null and captioned - null over channels, mean over pixels.
at::Tensor mean_cosine(const at::Tensor& captioned, const at::Tensor& null) {
  return at::cosine_similarity(null, captioned - null, 1).flatten(1).mean(1);
}

/// The two predictions at `timestep` on pure noise.
at::Tensor cosine_on_noise(AuditedModel& model, const DrawingStart& start, double timestep) {
  const c10::NoGradGuard no_grad;
  const int64_t rows = start.noise.size(0);
  const at::Tensor t = timestep_tensor(model.schedule, timestep, start.noise.device()).expand({2 * rows});
  const Conditioning both = cat(start.condition.uncaptioned(start.null), start.condition);
  const at::Tensor answer = model.model.predict(at::cat({start.noise, start.noise}), t, both);
  return mean_cosine(answer.narrow(0, rows, rows), answer.narrow(0, 0, rows));
}

/// nullopt where there is next to no signal (rescale_betas_zero_snr): the factor would leave nothing of the norm.
std::optional<double> norm_factor(const NoiseSchedule& schedule, double timestep) {
  if (schedule.prediction() != Prediction::v) return 1;
  const double a = signal_level(schedule, timestep);
  if (!(a > 1e-6)) return std::nullopt;
  return std::sqrt(a) / (1 - a);
}

/// Adds what the attention told of drawing `i`.
void add_attention(Json& row, const AttentionFindings& found, int64_t i, bool all_steps) {
  row["entropy"] = numbers(found.entropy[i]);
  row["end_entropy"] = numbers(found.end_entropy[i]);
  if (found.first.defined()) row["attention_entropy_first"] = found.first[i].item<double>();
  if (!all_steps) return;
  row["attention_entropy"] = found.late[i].item<double>();
  if (found.masked_magnitude.defined()) row["masked_magnitude"] = numbers(found.masked_magnitude[i]);
}

std::string picture_name(const std::string& set, const Drawing& drawing) {
  char text[64];
  std::snprintf(text, sizeof text, "%05lld_%02lld.png", static_cast<long long>(drawing.prompt),
                static_cast<long long>(drawing.picture));
  return "pictures/" + set + "/" + text;
}

}  // namespace

std::vector<Json> measure_drawings(const std::vector<Drawing>& batch, const PromptSet& set, AuditedModel& model,
                                   PictureDecoder* decoder, const DetectionOptions& options) {
  const DrawingStart start = start_of(set.prompts, batch, options.seed, set.stream, model.model.device());
  std::vector<at::Tensor> steps;
  std::optional<AttentionScores> attention;
  if (options.attention && set.prompts.has_tokens())
    attention.emplace(model.model.denoiser().module(), end_tokens(batch, set.prompts));
  const auto hook = [&](const DrawStep& step) {
    steps.push_back(magnitude(step.captioned, step.null));
    if (attention) attention->end_step(step.captioned - step.null);
    return guided(step.null, step.captioned, model.sampling.guidance);
  };
  const at::Tensor drawn = ddim_sample(model.schedule, model.predict(), start.noise, start.condition, start.null,
                                       model.sampling, hook, {.first_steps = options.first_steps});
  std::optional<AttentionFindings> looks;
  if (attention) looks = attention->findings();
  attention.reset();  // it would look at what follows, too
  const at::Tensor magnitudes = at::stack(steps, 1).cpu();
  require_finite_rows(magnitudes, "the magnitude", batch, set.prompts);
  if (looks) require_finite_rows(looks->entropy, "the entropy of the attention to text", batch, set.prompts);
  if (looks && looks->masked_magnitude.defined())
    require_finite_rows(looks->masked_magnitude, "the magnitude where the end token is looked at", batch, set.prompts);
  const auto timesteps = draw_timesteps(model.schedule, model.sampling);
  at::Tensor cosine, pictures;
  if (options.cosine) {
    cosine = cosine_on_noise(model, start, timesteps[timesteps.size() - std::min<size_t>(3, timesteps.size())]).cpu();
    require_finite_rows(cosine, "the cosine", batch, set.prompts);
  }
  if (decoder != nullptr && options.first_steps < 0) pictures = decoder->decode(drawn).cpu();
  const auto factor = norm_factor(model.schedule, timesteps.front());
  std::vector<Json> rows;
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    Json row{{"set", set.name},
             {"prompt", batch[i].prompt},
             {"picture_number", batch[i].picture},
             {"magnitude", numbers(magnitudes[at])}};
    if (factor) row["norm"] = magnitudes[at][0].item<double>() * *factor;
    if (options.cosine) row["cosine"] = cosine[at].item<double>();
    if (looks) add_attention(row, *looks, at, options.first_steps < 0);
    if (pictures.defined()) {
      row["picture"] = picture_name(set.name, batch[i]);
      write_picture(options.folder, row["picture"], pictures[at]);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

double caption_gain(int64_t prompt, const PromptSet& set, AuditedModel& model, uint64_t seed, int64_t draws,
                    int64_t rows) {
  static const SignalRegistry signals = builtin_signals();
  const c10::NoGradGuard no_grad;
  const Conditioning null = set.prompts.data().null().to(model.model.device());
  const NoiseDraws noise{
      .seed = seed, .stream = Stream::caption_gain_noise, .key = prompt, .draws = draws, .rows = rows};
  double sum = 0;
  for_noised(set.prompts.data(), {prompt}, noise, model,
             [&](const NoisedPictures& part, const Conditioning& condition) {
               const int64_t size = part.noisy.size(0);
               const at::Tensor answer =
                   model.model.predict(at::cat({part.noisy, part.noisy}), at::cat({part.timestep, part.timestep}),
                                       cat(condition.uncaptioned(null), condition));
               const at::Tensor gain = signals.find("caption_gain")
                                           ->measure({.timestep = part.timestep.to(at::kFloat),
                                                      .prediction = answer.narrow(0, size, size),
                                                      .target = part.target,
                                                      .counterfactual = answer.narrow(0, 0, size)});
               require_finite_rows(gain, "the caption's gain",
                                   std::vector<Drawing>(static_cast<size_t>(size), {prompt, 0}), set.prompts);
               sum += gain.to(at::kDouble).sum().item<double>();
             });
  return sum / static_cast<double>(draws);
}

}  // namespace memsieve::audit
