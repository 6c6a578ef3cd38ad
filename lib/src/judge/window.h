#pragma once
// Rings of recent values, kept on the device and filled without synchronising with the host. Private to the library.

#include <ATen/core/Tensor.h>

namespace memsieve {

/// For records in a fixed global order: each one's rank among the records with the same key, and how many share its
/// key. keys [R] int64 >= 0 -> {rank [R], count [R]} int64. No host synchronisation.
struct Ranks {
  at::Tensor rank, count;
};
Ranks rank_within_key(const at::Tensor& keys);

/// `rows` rings of `length` items of `width` float32. The row after the last takes what must not be kept.
class Rings {
 public:
  Rings() = default;
  Rings(int64_t rows, int64_t length, int64_t width, at::Device device);
  /// Appends items [R, width] to rings keys [R], in order, where valid [R] bool.
  void fold(const at::Tensor& keys, const at::Tensor& items, const at::Tensor& valid);
  /// [rows, length, width]; NaN where nothing was written yet.
  at::Tensor values() const;
  /// [rows] int64: how many items were ever appended to each ring.
  at::Tensor counts() const;

  /// [rows + 1, length, width] float32
  at::Tensor buffer;
  /// [rows + 1] int64
  at::Tensor count;
};

/// Robust location and scale of each ring's first channel: median and 1.4826 * MAD, ignoring NaN; [rows] each.
struct Robust {
  at::Tensor median, scale, count;
};
Robust robust(const at::Tensor& values);

}  // namespace memsieve
