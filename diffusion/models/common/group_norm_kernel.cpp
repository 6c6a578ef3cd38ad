// GroupNorm + SiLU on [B, pixels, C] floats. Samples are cut into blocks of pixels, which threads share; what blocks
// found is added up in a fixed order, in double precision.
#include <ATen/Parallel.h>
#include <diffusion/models/common/group_norm.h>
#include <diffusion/models/common/vectorised.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace memsieve::diffusion {

namespace {

constexpr int64_t kBlock = 64;  // pixels: with some hundred channels they stay in the second-level cache

struct Blocks {
  const GroupNormShape& shape;
  int64_t per_sample = (shape.pixels + kBlock - 1) / kBlock;

  int64_t count() const { return shape.batch * per_sample; }
  int64_t sample(int64_t block) const { return block / per_sample; }
  int64_t pixels(int64_t block) const { return std::min(kBlock, shape.pixels - block % per_sample * kBlock); }
  int64_t offset(int64_t block) const {
    return (sample(block) * shape.pixels + block % per_sample * kBlock) * shape.channels;
  }
};

template <class F>
void each_block(const Blocks& blocks, const F& f) {
  at::parallel_for(0, blocks.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) f(block);
  });
}

// Mean, and sum of squared differences from it, of each channel over the block.
MEMSIEVE_VECTORISED void block_moments(const float* __restrict x, int64_t pixels, int64_t channels,
                                       float* __restrict mean, float* __restrict squares) {
  for (int64_t c = 0; c < channels; ++c) mean[c] = squares[c] = 0;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) mean[c] += x[p * channels + c];
  const float scale = 1.0F / static_cast<float>(pixels);
  for (int64_t c = 0; c < channels; ++c) mean[c] *= scale;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; ++c) {
      const float d = x[p * channels + c] - mean[c];
      squares[c] += d * d;
    }
}

MEMSIEVE_VECTORISED void apply(const float* __restrict x, int64_t pixels, int64_t channels,
                               const float* __restrict scale, const float* __restrict shift, bool activate,
                               float* __restrict y) {
  for (int64_t p = 0; p < pixels; ++p, x += channels, y += channels) {
    if (activate) {
      for (int64_t c = 0; c < channels; ++c) {
        const float z = x[c] * scale[c] + shift[c];
        y[c] = z * vector_sigmoid(z);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) y[c] = x[c] * scale[c] + shift[c];
    }
  }
}

// dz, the gradient before SiLU, and its sums over the block, alone and times the normalised input.
MEMSIEVE_VECTORISED void block_gradients(const float* __restrict dy, const float* __restrict x, int64_t pixels,
                                         int64_t channels, const float* __restrict scale, const float* __restrict shift,
                                         const float* __restrict rstd, const float* __restrict offset, bool activate,
                                         float* __restrict dz, float* __restrict sum, float* __restrict sum_x) {
  for (int64_t c = 0; c < channels; ++c) sum[c] = sum_x[c] = 0;
  for (int64_t p = 0; p < pixels; ++p, x += channels, dy += channels, dz += channels) {
    if (activate) {
      for (int64_t c = 0; c < channels; ++c) {
        const float z = x[c] * scale[c] + shift[c], s = vector_sigmoid(z);
        dz[c] = dy[c] * s * (1.0F + z * (1.0F - s));
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) dz[c] = dy[c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      sum[c] += dz[c];
      sum_x[c] += dz[c] * (x[c] * rstd[c] + offset[c]);
    }
  }
}

// dx = a dz + b x + c, in place of dz.
MEMSIEVE_VECTORISED void finish_gradients(const float* __restrict x, int64_t pixels, int64_t channels,
                                          const float* __restrict a, const float* __restrict b,
                                          const float* __restrict shift, float* __restrict dx) {
  for (int64_t p = 0; p < pixels; ++p, x += channels, dx += channels)
    for (int64_t c = 0; c < channels; ++c) dx[c] = a[c] * dx[c] + b[c] * x[c] + shift[c];
}

// Coefficients of each sample's channels, as the loops above take them.
struct Affine {
  Affine(const GroupNormShape& s, const float* gamma, const float* beta, const float* mean, const float* rstd)
      : scale(s.batch * s.channels), shift(scale.size()), rstds(scale.size()), offset(scale.size()) {
    const int64_t width = s.channels / s.groups;
    for (int64_t group = 0, i = 0; group < s.batch * s.groups; ++group)
      for (int64_t first = group % s.groups * width, c = first; c < first + width; ++c, ++i) {
        rstds[i] = rstd[group];
        offset[i] = -mean[group] * rstd[group];
        scale[i] = gamma[c] * rstds[i];
        shift[i] = beta[c] + gamma[c] * offset[i];
      }
  }
  std::vector<float> scale, shift, rstds, offset;
};

// Pools the moments of all blocks and channels of one group (Chan, Golub, LeVeque, 1979).
void pool(const Blocks& blocks, const std::vector<float>& moments, int64_t sample, int64_t first, int64_t width,
          double eps, float& mean_out, float& rstd_out) {
  const int64_t channels = blocks.shape.channels;
  double sum = 0;
  const auto each = [&](const auto& f) {
    for (int64_t i = 0; i < blocks.per_sample; ++i) {
      const int64_t block = sample * blocks.per_sample + i;
      const float* mean = moments.data() + 2 * block * channels;
      for (int64_t c = first; c < first + width; ++c) f(double(blocks.pixels(block)), mean[c], mean[channels + c]);
    }
  };
  each([&](double n, double mean, double) { sum += n * mean; });
  const double count = double(blocks.shape.pixels) * double(width), mean = sum / count;
  double squares = 0;
  each([&](double n, double m, double within) { squares += within + n * (m - mean) * (m - mean); });
  mean_out = static_cast<float>(mean);
  rstd_out = static_cast<float>(1.0 / std::sqrt(squares / count + eps));
}

// What blocks found, [2 C] each, added up for each sample.
std::vector<double> add_up(const Blocks& blocks, const std::vector<float>& parts) {
  const int64_t size = 2 * blocks.shape.channels;
  std::vector<double> sums(blocks.shape.batch * size);
  for (int64_t block = 0; block < blocks.count(); ++block)
    for (int64_t i = 0; i < size; ++i) sums[blocks.sample(block) * size + i] += parts[block * size + i];
  return sums;
}

// The means over a group in dx = rstd (gamma dz - mean(gamma dz) - n mean(gamma dz n)), n = the normalised input, as
// slope x + shift; and the gradients of gamma and beta. `sums`: of dz, then of dz n.
struct Means {
  Means(const Blocks& blocks, const std::vector<double>& sums, const float* gamma, const float* mean, const float* rstd,
        float* dgamma, float* dbeta)
      : slope(sums.size() / 2), shift(slope.size()) {
    const GroupNormShape& s = blocks.shape;
    const int64_t width = s.channels / s.groups;
    const double count = double(s.pixels) * double(width);
    std::vector<double> totals(2 * s.channels);
    for (int64_t i = 0; i < s.batch * s.groups; ++i) {
      const int64_t sample = i / s.groups, first = i % s.groups * width;
      const double *plain = sums.data() + 2 * sample * s.channels, *times_n = plain + s.channels;
      double group = 0, group_n = 0;
      for (int64_t c = first; c < first + width; ++c) {
        group += plain[c] * gamma[c];
        group_n += times_n[c] * gamma[c];
        totals[c] += plain[c];
        totals[s.channels + c] += times_n[c];
      }
      const double a = -double(rstd[i]) * rstd[i] * group_n / count;
      std::fill_n(&slope[sample * s.channels + first], width, static_cast<float>(a));
      std::fill_n(&shift[sample * s.channels + first], width,
                  static_cast<float>(-a * mean[i] - rstd[i] * group / count));
    }
    for (int64_t c = 0; c < s.channels; ++c) {
      dbeta[c] = static_cast<float>(totals[c]);
      dgamma[c] = static_cast<float>(totals[s.channels + c]);
    }
  }
  std::vector<float> slope, shift;
};

}  // namespace

void group_norm_forward(const GroupNormShape& s, double eps, bool activate, const float* x, const float* gamma,
                        const float* beta, float* y, float* mean, float* rstd) {
  const Blocks blocks{s};
  std::vector<float> moments(2 * blocks.count() * s.channels);
  each_block(blocks, [&](int64_t block) {
    float* out = moments.data() + 2 * block * s.channels;
    block_moments(x + blocks.offset(block), blocks.pixels(block), s.channels, out, out + s.channels);
  });
  const int64_t width = s.channels / s.groups;
  for (int64_t i = 0; i < s.batch * s.groups; ++i)
    pool(blocks, moments, i / s.groups, i % s.groups * width, width, eps, mean[i], rstd[i]);
  const Affine to(s, gamma, beta, mean, rstd);
  each_block(blocks, [&](int64_t block) {
    const int64_t at = blocks.offset(block), row = blocks.sample(block) * s.channels;
    apply(x + at, blocks.pixels(block), s.channels, &to.scale[row], &to.shift[row], activate, y + at);
  });
}

void group_norm_backward(const GroupNormShape& s, bool activate, const float* dy, const float* x, const float* gamma,
                         const float* beta, const float* mean, const float* rstd, float* dx, float* dgamma,
                         float* dbeta) {
  const Blocks blocks{s};
  const Affine to(s, gamma, beta, mean, rstd);
  std::vector<float> parts(2 * blocks.count() * s.channels);
  each_block(blocks, [&](int64_t block) {
    const int64_t at = blocks.offset(block), row = blocks.sample(block) * s.channels;
    float* out = parts.data() + 2 * block * s.channels;
    block_gradients(dy + at, x + at, blocks.pixels(block), s.channels, &to.scale[row], &to.shift[row], &to.rstds[row],
                    &to.offset[row], activate, dx + at, out, out + s.channels);
  });
  const Means means(blocks, add_up(blocks, parts), gamma, mean, rstd, dgamma, dbeta);
  each_block(blocks, [&](int64_t block) {
    const int64_t at = blocks.offset(block), row = blocks.sample(block) * s.channels;
    finish_gradients(x + at, blocks.pixels(block), s.channels, &to.scale[row], &means.slope[row], &means.shift[row],
                     dx + at);
  });
}

}  // namespace memsieve::diffusion
