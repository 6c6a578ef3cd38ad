#include <ATen/ATen.h>
#include <audit/measure/inversion.h>
#include <audit/measure/prediction_error.h>
#include <audit/statistics/descriptive.h>
#include <c10/core/GradMode.h>
#include <diffusion/data/rows.h>
#include <torch/optim/adam.h>

#include <algorithm>

namespace memsieve::audit {

namespace {

constexpr double kWeightStep = 0.001, kLeastGain = 0.001;
constexpr size_t kErrorsAveraged = 100;

/// The noise that is searched for: normal, each value by itself.
struct NoiseDistribution {
  at::Tensor mean, log_variance;

  explicit NoiseDistribution(const at::Tensor& picture)
      : mean(at::zeros_like(picture).requires_grad_(true)),
        log_variance(at::zeros_like(picture).requires_grad_(true)) {}
  at::Tensor of(const at::Tensor& standard) const { return mean + (log_variance / 2).exp() * standard; }
  at::Tensor divergence() const { return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).mean(); }
};

class NoiseInversion {
 public:
  NoiseInversion(int64_t prompt, const PromptSet& set, AuditedModel& model, const InversionOptions& options)
      : prompt_(prompt),
        set_(set),
        model_(model),
        options_(options),
        null_(set.prompts.data().null().to(model.model.device())),
        weight_(options.every) {
    const Rows loaded = set.prompts.data().load({prompt});
    picture_ = loaded.latents.to(model.model.device());
    condition_ = loaded.condition.to(model.model.device());
    if (options.empty) condition_ = condition_.uncaptioned(null_);
  }

  InvertedNoise run(const std::function<std::vector<double>(const at::Tensor& drawn)>& similarity) {
    const c10::AutoGradMode gradient(true);
    NoiseDistribution noise(picture_);
    torch::optim::Adam optimizer({noise.mean, noise.log_variance}, torch::optim::AdamOptions(options_.learning_rate));
    for (int64_t step = 0; step < options_.steps && !found_.divergence; ++step) {
      optimizer.zero_grad();
      update(noise, step);
      optimizer.step();
      if ((step + 1) % options_.every == 0 || step + 1 == options_.steps) look(noise, similarity);
    }
    return std::move(found_);
  }

 private:
  /// Leaves the gradient of one update.
  void update(const NoiseDistribution& noise, int64_t step) {
    double error = 0;
    const auto take = [&](const at::Tensor& standard, const at::Tensor& timestep) {
      const NoisedPictures made = noised(picture_, noise.of(standard), timestep, model_.schedule);
      const at::Tensor answer = model_.model.predict(made.noisy, timestep, repeated(condition_, standard.size(0)));
      const at::Tensor x0 = model_.schedule.predicted_sample(made.noisy, answer, timestep);
      const at::Tensor part = row_losses(x0, picture_.expand_as(x0)).sum() / static_cast<double>(options_.batch);
      part.backward();
      require_finite_rows(part.view({1}), "the error while its noise is inverted", {{prompt_, 0}}, set_.prompts);
      error += part.item<double>();
    };
    for_search_noise({.seed = options_.seed,
                      .noise = Stream::inversion_noise,
                      .timestep = Stream::inversion_timestep,
                      .key = options_.key,
                      .batch = options_.batch,
                      .rows = options_.rows},
                     step, set_.prompts.data().latent_shape(), model_, take);
    const at::Tensor divergence = noise.divergence();
    (weight_.value() * divergence).backward();
    found_.errors.push_back(error);
    found_.divergences.push_back(divergence.item<double>());
    found_.weights.push_back(weight_.value());
    weight_.update(error);
  }

  /// Draws from the noise with every guidance; ends the search if one gives nothing but pictures that are alike.
  void look(const NoiseDistribution& noise,
            const std::function<std::vector<double>(const at::Tensor& drawn)>& similarity) {
    const c10::NoGradGuard no_grad;
    const int64_t count = options_.drawings, first = looks_++ * count;
    const at::Tensor start =
        noise.of(keyed_normal(options_.seed, Stream::inversion_drawing, place_keys(options_.key, first, count),
                              set_.prompts.data().latent_shape())
                     .to(picture_.device()));
    double best = -2;
    for (int64_t guidance = 1; guidance <= (options_.empty ? 1 : options_.guidance); ++guidance) {
      const at::Tensor drawn = draw(start, static_cast<double>(guidance));
      const auto found = similarity(drawn);
      found_.drawings += count;
      const double least = *std::min_element(found.begin(), found.end());
      if (least <= best) continue;
      best = least;
      found_.guidance = guidance;
      found_.similarities = found;
      found_.drawn = drawn;
    }
    if (best >= options_.similarity) found_.divergence = noise.divergence().item<double>();
  }

  at::Tensor draw(const at::Tensor& start, double guidance) {
    DdimOptions sampling = model_.sampling;
    sampling.guidance = guidance;
    std::vector<at::Tensor> drawn;
    for (int64_t begin = 0; begin < start.size(0); begin += options_.rows) {
      const int64_t size = std::min(options_.rows, start.size(0) - begin);
      drawn.push_back(ddim_sample(model_.schedule, model_.predict(), start.narrow(0, begin, size),
                                  repeated(condition_, size), null_, sampling));
    }
    at::Tensor all = at::cat(drawn);
    require_finite_rows(all, "what was drawn from inverted noise",
                        std::vector<Drawing>(static_cast<size_t>(all.size(0)), {prompt_, 0}), set_.prompts);
    return all;
  }

  int64_t prompt_;
  const PromptSet& set_;
  AuditedModel& model_;
  const InversionOptions& options_;
  Conditioning null_, condition_;
  /// [1, C, H, W]
  at::Tensor picture_;
  DivergenceWeight weight_;
  int64_t looks_ = 0;
  InvertedNoise found_;
};

}  // namespace

void DivergenceWeight::update(double error) {
  errors_.push_back(error);
  if (static_cast<int64_t>(errors_.size()) % every_ != 0) {
    value_ += kWeightStep;
    return;
  }
  const auto count = std::min<size_t>(kErrorsAveraged, errors_.size());
  const double error_now = mean(std::span(errors_).last(count));
  const bool gained = !mean_before_ || *mean_before_ - error_now >= kLeastGain;
  value_ = gained ? value_ + kWeightStep : value_ / 2;
  mean_before_ = error_now;
}

InvertedNoise invert_noise(int64_t prompt, const PromptSet& set, AuditedModel& model, const InversionOptions& options,
                           const std::function<std::vector<double>(const at::Tensor& drawn)>& similarity) {
  return NoiseInversion(prompt, set, model, options).run(similarity);
}

}  // namespace memsieve::audit
