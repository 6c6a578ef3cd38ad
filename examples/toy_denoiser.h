#pragma once
// What the examples share and what is yours in a real loop: some data, a denoiser, an optimiser. No torch::nn needed.

#include <ATen/ATen.h>
#include <memsieve/batch.h>

#include <cmath>
#include <vector>

namespace toy {

constexpr int64_t kSamples = 1024, kRepeated = 64;  // rows, of which the first 64 are one and the same
constexpr int64_t kSteps = 1000;                    // timesteps

/// "Pictures" [N, 4, 4, 4] with "captions" [N, 16]: a picture is what its caption says, the same way for all, and as
/// much again of its own. The first kRepeated rows are one picture.
struct Data {
  at::Tensor pictures, text, no_text;
};

inline Data make_data(uint64_t seed = 7) {
  at::Generator random = at::detail::createCPUGenerator(seed);
  at::Tensor meaning = at::randn({16, 64}, at::detail::createCPUGenerator(99)) / 4,
             text = at::randn({kSamples, 16}, random);
  at::Tensor pictures = (at::mm(text, meaning) + at::randn({kSamples, 64}, random)) * M_SQRT1_2;
  Data data{pictures.view({kSamples, 4, 4, 4}), text, at::zeros({16})};
  data.pictures.narrow(0, 1, kRepeated - 1).copy_(data.pictures.narrow(0, 0, 1).expand({kRepeated - 1, 4, 4, 4}));
  data.text.narrow(0, 1, kRepeated - 1).copy_(data.text.narrow(0, 0, 1).expand({kRepeated - 1, 16}));
  return data;
}

/// Rows' noised pictures and what the model should predict for them (v-prediction, cosine schedule).
struct Noised {
  at::Tensor noisy, target;
};

inline Noised add_noise(const at::Tensor& pictures, const at::Tensor& noise, const at::Tensor& timestep) {
  at::Tensor angle = (timestep.to(at::kFloat) * (M_PI / 2 / kSteps)).view({-1, 1, 1, 1});
  return {angle.cos() * pictures + angle.sin() * noise, angle.cos() * noise - angle.sin() * pictures};
}

/// A multilayer perceptron on (noised picture, caption, timestep).
struct Denoiser {
  std::vector<at::Tensor> parameters;

  explicit Denoiser(uint64_t seed = 1, int64_t width = 256) {
    at::Generator random = at::detail::createCPUGenerator(seed);
    for (auto [out, in] : {std::pair<int64_t, int64_t>{width, 81}, {width, width}, {64, width}}) {
      parameters.push_back((at::randn({out, in}, random) / std::sqrt(in)).set_requires_grad(true));
      parameters.push_back(at::zeros({out}).set_requires_grad(true));
    }
  }
  at::Tensor operator()(const at::Tensor& noisy, const at::Tensor& timestep, const at::Tensor& text) const {
    at::Tensor x = at::cat({noisy.flatten(1), text, timestep.to(at::kFloat).unsqueeze(1) / kSteps}, 1);
    for (size_t i = 0; i < 4; i += 2) x = at::silu(at::linear(x, parameters[i], parameters[i + 1]));
    return at::linear(x, parameters[4], parameters[5]).view_as(noisy);
  }
  std::vector<at::Tensor> gradients() const {
    std::vector<at::Tensor> all;
    for (const at::Tensor& p : parameters) all.push_back(p.grad());
    return all;
  }
};

/// torch's fused AdamW: it takes the sieve's gradient scale and skip flag as tensors, so the host waits for nothing.
class AdamW {
 public:
  AdamW(std::vector<at::Tensor> parameters, double rate) : parameters_(std::move(parameters)), rate_(rate) {
    for (const at::Tensor& p : parameters_) {
      first_.push_back(at::zeros_like(p));
      second_.push_back(at::zeros_like(p));
      count_.push_back(at::zeros({}));
    }
  }
  void step(const memsieve::StepEnd& end) {
    std::vector<at::Tensor> gradients;
    for (const at::Tensor& p : parameters_) gradients.push_back(p.grad());
    for (at::Tensor& count : count_) count.add_(1 - end.skip);
    at::_fused_adamw_(parameters_, gradients, first_, second_, {}, count_, rate_, 0.9, 0.999, 0.01, 1e-8, false, false,
                      end.grad_scale, end.skip);
    for (at::Tensor& p : parameters_) p.mutable_grad() = at::Tensor();
  }

 private:
  std::vector<at::Tensor> parameters_, first_, second_, count_;
  double rate_;
};

}  // namespace toy
