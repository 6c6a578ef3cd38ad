#pragma once
// Two well-known hashes. Private to this repository: it is not installed.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

namespace memsieve::detail {

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): one well-mixed word for
/// each input.
constexpr uint64_t split_mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr uint64_t kFnv1aStart = 0xcbf29ce484222325ULL;

/// FNV-1a, 64 bits (Fowler, Noll, Vo): `hash` is kFnv1aStart, or what came out for the bytes before.
inline uint64_t fnv1a(const void* data, size_t bytes, uint64_t hash = kFnv1aStart) {
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ULL;
  return hash;
}

/// Sixteen digits.
inline std::string in_hex(uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace memsieve::detail
