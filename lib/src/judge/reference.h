#pragma once
// Reference: what the model at the start of fine-tuning already found easy. Private to the library.
//
// Each picture's mean z-score per channel under the starting model, b, predicts part of its later z-scores without any
// memorisation. A least-squares line through rows of the reference population (z ~ 1 + b_1 + ... + b_C) is subtracted.

#include <memsieve/schema.h>

#include "judge/standardise.h"
#include "judge/state.h"
#include "judge/window.h"
#include "signals/channel.h"

namespace memsieve {

struct ReferenceOptions {
  enum class Kind { none, start_model };
  Kind kind = Kind::none;
  /// of each picture; 0 with `none`
  int64_t draws = 5;

  static Schema schema();
  static ReferenceOptions read(const Settings& sieve);
  void check(const Settings& sieve, const StandardiseOptions& standardise, const std::vector<Channel>& channels,
             int64_t num_timesteps) const;
  bool is_on() const { return kind == Kind::start_model; }
};

class Reference {
 public:
  Reference(const ReferenceOptions& options, int64_t pictures, int64_t channels, at::Device device);

  bool is_on() const { return options_.is_on(); }
  /// Draws of the starting model: picture [R] int64, cell [R] int64 in [0, cells), raw [R, C], from_population [R] bool
  /// (the rows that set each cell's median and MAD). May synchronise: it runs once, before training.
  void set(const at::Tensor& picture, const at::Tensor& cell, const at::Tensor& raw, const at::Tensor& from_population,
           int64_t cells, double clip);
  /// z [R, C] of pictures [R], less what the starting model explains of them.
  at::Tensor apply(const at::Tensor& z, const at::Tensor& picture) const;
  /// Appends what `apply` made, [R, C] of pictures [R], to the rows that the line is fitted to, where
  /// valid [R]; refits.
  void fold(const at::Tensor& picture, const at::Tensor& adjusted, const at::Tensor& valid);
  State state();

 private:
  /// [R, C]: the part of z that the starting model explains.
  at::Tensor explained(const at::Tensor& picture) const;
  void fit();

  ReferenceOptions options_;
  /// [pictures, C] float32, 0 = average
  at::Tensor easiness_;
  /// [C, C + 1] float32
  at::Tensor coefficients_;
  /// one ring of z and b, [1, 2048, 2C]
  Rings recent_;
};

}  // namespace memsieve
