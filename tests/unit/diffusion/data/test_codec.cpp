// Pictures to latents and back.
#include <ATen/ATen.h>
#include <diffusion/data/codec.h>

#include <catch2/catch.hpp>
#include <limits>

namespace of_test_codec {

using namespace memsieve::diffusion;

TEST_CASE("decode undoes encode for every byte value") {
  const auto values = at::arange(256, at::kInt).to(at::kByte).view({1, 1, 16, 16}).expand({2, 3, 16, 16}).contiguous();
  for (const int64_t factor : {1, 2, 4}) {
    const Codec codec{factor, {0.71, 0.68, 0.6}, {0.31, 0.29, 0.4}};
    const auto latents = codec.encode(values);
    REQUIRE(latents.sizes() == at::IntArrayRef({2, 3 * factor * factor, 16 / factor, 16 / factor}));
    REQUIRE(latents.scalar_type() == at::kFloat);
    REQUIRE(at::equal(codec.decode(latents), values));
  }
}

TEST_CASE("encode standardises per colour, in torch's pixel_unshuffle order") {
  auto image = at::zeros({1, 3, 2, 2}, at::kByte);
  image[0][1][0][1] = 255;  // green, first line, second column
  const Codec codec{2, {0.5, 0.25, 0}, {0.5, 0.5, 1}};
  const auto latents = codec.encode(image).flatten();
  REQUIRE(latents.size(0) == 12);
  REQUIRE(latents[0].item<float>() == -1.0f);
  REQUIRE(latents[4].item<float>() == -0.5f);
  REQUIRE(latents[5].item<float>() == 1.5f);  // channel 1, offset (0, 1)
  REQUIRE(latents[8].item<float>() == 0.0f);
}

TEST_CASE("decode clamps, and survives what is no number") {
  const float huge = std::numeric_limits<float>::infinity();
  const auto latents = at::tensor({-9.0f, 9.0f, huge, -huge, std::numeric_limits<float>::quiet_NaN(), 0.5f});
  const auto bytes = Codec{}.decode(latents.view({1, 1, 1, 6}).expand({1, 3, 1, 6}))[0][0][0];
  REQUIRE(at::equal(bytes, at::tensor({0, 255, 255, 0, 0, 128}, at::kInt).to(at::kByte)));
  REQUIRE(Codec{}.decode(at::zeros({1, 3, 1, 1}, at::kBFloat16)).scalar_type() == at::kByte);
}

}  // namespace of_test_codec
