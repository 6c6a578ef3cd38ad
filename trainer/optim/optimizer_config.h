#pragma once
// What AdamW and its learning-rate schedule are to be. Names are those of diffusers' training scripts.

#include <cstdint>
#include <string>

namespace memsieve::trainer {

struct OptimizerConfig {
  double learning_rate = 1e-4;
  std::string lr_scheduler = "constant";
  int64_t lr_warmup_steps = 0;
  double lr_decay_fraction = 1;
  /// of cosine_with_restarts
  int64_t lr_num_cycles = 1;
  /// of polynomial
  double lr_power = 1;
  double beta1 = 0.9, beta2 = 0.999, weight_decay = 0.01, epsilon = 1e-8;
  /// 0 = no clipping
  double max_grad_norm = 1;
};

}  // namespace memsieve::trainer
