#pragma once
// LoRA: low-rank adapters beside the layers of a frozen UNet; a layer answers W x + alpha / rank * B A x. Hu et al.:
// "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. Names, starting values and file are those of peft
// and diffusers.

#include <diffusion/models/common/adapter.h>
#include <diffusion/models/lora/lora_config.h>
#include <diffusion/models/unet/unet.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::diffusion {

class Lora {
 public:
  /// Freezes the parameters of `unet` and adds float32 adapters on the device they lie on. With B = 0 the UNet answers
  /// what it did before, bit for bit. The same seed, the same A. ConfigError, naming what there is, for a target that
  /// names no layer or a rank below 1; `where` begins it.
  Lora(UNet2DConditionModel& unet, const LoraConfig& config, uint64_t seed, const std::string& where);

  /// Adds the adapters that a file holds, whatever layers, rank and alpha they have. DataError naming file and tensor
  /// for a file that is no adapter of this UNet, or that holds what is not supported here.
  static Lora load(UNet2DConditionModel& unet, const std::string& path);

  /// What is trained: `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, float32, in the order of the layers.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;

  /// Whether the layers apply their adapters. Off: the UNet is the one without adapters.
  void apply(bool on);

  /// Writes `folder`/pytorch_lora_weights.safetensors in the form that diffusers' load_lora_weights reads (diffusers
  /// 0.34 and later honour the alpha in its header; earlier ones take alpha = rank). DataError.
  void save(const std::string& folder) const;
  /// Takes the values of such a file, or of one by diffusers or peft. DataError if its layers, shapes or alpha are
  /// not these.
  void restore(const std::string& path);

  const LoraConfig& config() const { return config_; }
  int64_t layers() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    std::string layer;
    std::shared_ptr<LowRank> adapter;
  };
  LoraConfig config_;
  std::vector<Entry> entries_;
};

/// The file that Lora::save writes.
extern const char* const lora_file_name;

/// 16 hexadecimal digits of a UNet's parameters: names, shapes, the sum of all bits and some values. An adapter makes
/// sense only on the base it was trained on. Reads every parameter once; call it before they change dtype.
std::string fingerprint(UNet2DConditionModel& unet);

}  // namespace memsieve::diffusion
