#pragma once
// What LoRA is to be: apart from lora.h, so that a configuration need not know the UNet.

#include <cstdint>
#include <string>
#include <vector>

namespace memsieve::diffusion {

struct LoraConfig {
  int64_t rank = 4;
  double alpha = 4;
  /// Every layer whose dotted name is one of these or ends in "." and one of these gets an adapter.
  std::vector<std::string> target_modules = {"to_q", "to_k", "to_v", "to_out.0"};
  /// A from N(0, 1 / rank^2), as diffusers' training scripts have it; else uniform in +-1/sqrt(inputs). B is 0.
  bool gaussian = false;
};

}  // namespace memsieve::diffusion
