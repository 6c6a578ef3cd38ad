#pragma once
// What our kernels for the CPU are made of: loops over floats that the compiler turns into vector instructions.

#include <bit>
#include <cstdint>

/// Before a function: compiled for several instruction sets, of which the machine's best is taken at the start. (The
/// sanitizers' start-up does not bear that.)
#if defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && defined(__x86_64__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MEMSIEVE_VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MEMSIEVE_VECTORISED
#endif
#define MEMSIEVE_INLINE inline __attribute__((always_inline))

namespace memsieve::diffusion {

/// e^x within 2 units in the last place for x in [-87, 88], held there outside. Cody and Waite's reduction, and the
/// polynomial of Moshier's Cephes library (expf.c).
MEMSIEVE_INLINE float vector_exp(float x) {
  x = x < -87.0F ? -87.0F : x;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * 1.44269504F + 12582912.0F;  // 1.5 x 2^23: rounds to a whole number
  const float n = shifted - 12582912.0F;
  const float r = (x - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + r + 1.0F;
  const int32_t exponent = (static_cast<int32_t>(n) + 127) << 23;
  return p * std::bit_cast<float>(exponent);
}

MEMSIEVE_INLINE float vector_sigmoid(float x) {
  return 1.0F / (1.0F + vector_exp(-x));
}

}  // namespace memsieve::diffusion
