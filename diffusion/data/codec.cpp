#include <ATen/ATen.h>
#include <diffusion/data/codec.h>

#include <vector>

namespace memsieve::diffusion {

namespace {

at::Tensor channel_tensor(const std::array<double, 3>& values, c10::Device device) {
  return at::tensor(at::ArrayRef<double>(values.data(), values.size()), at::kDouble)
      .to(at::kFloat)
      .view({1, 3, 1, 1})
      .to(device);
}

}  // namespace

at::Tensor Codec::encode(const at::Tensor& images) const {
  const auto x = images.to(at::kFloat).div_(255.0);
  const auto standard = (x - channel_tensor(mean, x.device())) / channel_tensor(std, x.device());
  return factor == 1 ? standard : at::pixel_unshuffle(standard, factor);
}

at::Tensor Codec::decode(const at::Tensor& latents) const {
  auto x = latents.to(at::kFloat);
  if (factor != 1) x = at::pixel_shuffle(x, factor);
  x = (x * channel_tensor(std, x.device()) + channel_tensor(mean, x.device())) * 255.0;
  return x.round().nan_to_num(0.0, 255.0, 0.0).clamp_(0, 255).to(at::kByte).contiguous();
}

}  // namespace memsieve::diffusion
