#pragma once
// LoRA: low-rank adapters beside the layers of a frozen model; a layer answers W x + alpha / rank * B A x. Hu et al.:
// "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. Names, starting values and file are those of peft
// and diffusers.

#include <diffusion/models/common/adapter.h>
#include <diffusion/models/lora/lora_config.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::diffusion {

class Lora {
 public:
  /// Freezes the parameters of `model` and adds float32 adapters, on the device they lie on, to layers that are
  /// Adaptable. With B = 0 the model answers what it did before, bit for bit. The same seed, the same A. ConfigError,
  /// naming what there is, for a target that names no layer or a rank below 1; `where` begins it. `component`: the
  /// model's name in its pipeline (Denoiser::component()), with which the names in its file begin.
  Lora(torch::nn::Module& model, const LoraConfig& config, uint64_t seed, const std::string& where,
       const std::string& component = "unet");

  /// Adds the adapters that a file holds, whatever layers, rank and alpha they have. DataError naming file and tensor
  /// for a file that is no adapter of this model, or that holds what is not supported here.
  static Lora load(torch::nn::Module& model, const std::string& path, const std::string& component = "unet");

  /// What is trained: `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, float32, in the order of the layers.
  std::vector<std::pair<std::string, at::Tensor>> parameters() const;

  /// Whether the layers apply their adapters. Off: the model is the one without adapters.
  void apply(bool on);
  bool applied() const { return applied_; }

  /// Adds scale * B A to the weights of the layers of `model`, the one that the adapters were made for, and takes the
  /// adapters off it: it then answers without them, but for rounding, what it answered with them.
  void merge(torch::nn::Module& model) const;

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
  std::string component_;
  std::vector<Entry> entries_;
  bool applied_ = true;
};

/// The file that Lora::save writes.
extern const char* const lora_file_name;

/// 16 hexadecimal digits of a model's parameters: names, shapes, the sum of all bits and some values. An adapter makes
/// sense only on the base it was trained on. Reads every parameter once; call it before they change dtype.
std::string fingerprint(torch::nn::Module& model);

}  // namespace memsieve::diffusion
