#pragma once
// Gradient checkpointing: what a block's backward needs is computed again instead of being kept.

#include <torch/nn/module.h>

#include <functional>
#include <vector>

namespace memsieve::diffusion {

/// f(inputs) -> one tensor. Nothing but `inputs` and `parameters` is kept for backward, which runs f once more (Chen et
/// al.: "Training Deep Nets with Sublinear Memory Cost", 2016, section 4). `parameters` are the leaves that f uses
/// besides its inputs: they get their gradients from this one node, so that each one's AccumulateGrad, and a reducer's
/// hook on it, runs once per backward as without checkpointing, and so that a block of trainable parameters behind
/// inputs without gradient (LoRA) is trained too.
///
/// f must be deterministic: random numbers are not drawn again the same. It runs under the autocast state that
/// checkpoint() was called in, both times, with autocast's weight cache off. Without grad mode, or if nothing needs a
/// gradient, it is a plain call. No second derivatives. Local; any device; never waits for it.
at::Tensor checkpoint(std::function<at::Tensor(const std::vector<at::Tensor>& inputs)> f,
                      const std::vector<at::Tensor>& inputs, const std::vector<at::Tensor>& parameters);

/// A module whose forward can be checkpointed.
class CheckpointableImpl : public torch::nn::Module {
 public:
  void set_gradient_checkpointing(bool on) { on_ = on; }

 protected:
  /// f(inputs), checkpointed if that is switched on; all parameters and adapters below this module are f's.
  at::Tensor run(std::function<at::Tensor(const std::vector<at::Tensor>& inputs)> f,
                 const std::vector<at::Tensor>& inputs);

 private:
  bool on_ = false;
};

}  // namespace memsieve::diffusion
