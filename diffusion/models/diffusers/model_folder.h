#pragma once
// The folder of one diffusers model: config.json and its weights in safetensors files.

#include <torch/nn/module.h>
#include <diffusion/io/safetensors.h>

#include <string>
#include <vector>

namespace memsieve::diffusion {

struct FolderWeights {
  TensorMap tensors;
  /// the file to name in errors: the weights, or the index of the shards
  std::string where;
};

/// All tensors of diffusion_pytorch_model.safetensors, or of the shards that its .index.json names, which must lie in
/// the folder itself; if neither is there, of the variant "fp16". DataError naming file and tensor.
FolderWeights read_weights(const std::string& folder);

/// Gives every parameter of `model` its tensor, as float32 on the CPU. DataError naming the file and the tensor for
/// anything missing, additional or of another shape. The model's own values need not have been filled.
void fill_parameters(torch::nn::Module& model, FolderWeights&& weights);

/// FOLDER/config.json and FOLDER/diffusion_pytorch_model.safetensors.
std::string config_path(const std::string& folder);
std::string weights_path(const std::string& folder);

}  // namespace memsieve::diffusion
