#pragma once
// Likeness: rows that resemble each other are judged by what all of them have shown. Private to the library.
//
// Copies of a picture are alike, in their caption or in what they show, and it is copies that make a model memorise. So
// a row with others like it among the last rows is probed first, and once two others like it were measured, what they
// showed counts for it, too: forty copies of a picture are found out together, by a few probes. Features are compared
// by the cosine after their mean is taken away. A row's own slot (judge/slots.h: its sample, or its group) always
// counts as alike. What is remembered grows with the data set, up to a bound: of few copies among many samples two
// seldom stand near each other.

#include <ATen/core/Tensor.h>

#include "judge/discounted.h"
#include "judge/state.h"
#include "judge/window.h"
#include "signals/features.h"

namespace memsieve {

/// What rows [B] like one have shown; all undefined where nothing is compared.
struct Neighbours {
  /// [B] float32 in [0, 1]: how many of the last rows of other samples are alike; 1 = four or more
  at::Tensor alike;
  /// [B, C]: the last measured visits of rows that are alike, its own slot's among them
  DiscountedSums::Past sums;
  /// [B] bool: at least two other samples are among these
  at::Tensor enough;
};

class Likeness {
 public:
  struct Options {
    /// from which rows count as alike
    double cosine = 0.85;
    /// of a visit against the next one
    double discount = 0.9;
    /// rows by which copies are noticed, and measured visits that are remembered
    int64_t seen = 512, measured = 1024;

    /// For a data set of so many samples: an eighth of it is seen, a sixteenth measured, at least 512 and 1024, at most
    /// 16384 and 8192 (4.5 and 2.5 MB).
    static Options of(double cosine, double discount, int64_t samples);
  };
  Likeness(const Options& options, int64_t channels, at::Device device);

  /// features [B, kLikenessWidth], NaN = none, of samples [B] with slots [B] int64.
  Neighbours of(const at::Tensor& features, const at::Tensor& sample, const at::Tensor& slot) const;
  /// A step's training rows: features [R, kLikenessWidth] of samples [R], where counted [R] bool.
  void fold_seen(const at::Tensor& features, const at::Tensor& sample, const at::Tensor& counted);
  /// Visits that were measured, in their global order: z [R, C] (NaN = not measured), where counted [R].
  void fold_measured(const at::Tensor& features, const at::Tensor& sample, const at::Tensor& slot, const at::Tensor& z,
                     const at::Tensor& counted);
  State state();

 private:
  at::Tensor centred(const at::Tensor& features) const;
  /// What visits near [B, V] bool, newest first, of scores z [V] float64 sum up to: {sum [B], visits [B]}.
  std::pair<at::Tensor, at::Tensor> summed(const at::Tensor& near, const at::Tensor& z) const;

  Options options_;
  /// [kLikenessWidth] and []: mean of the features, and the steps it is over
  at::Tensor mean_, steps_;
  /// [1, V, kLikenessWidth + 1] and [1, V, kLikenessWidth + 2 + C]: unit vectors, whose they are, and what was measured
  Rings seen_, measured_;
  /// [V] float64: powers of the discount
  at::Tensor powers_;
};

}  // namespace memsieve
