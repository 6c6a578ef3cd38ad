#pragma once
// The model that fine-tuning started from, beside the one that is trained.

#include <diffusion/models/model.h>
#include <trainer/trainer_rooms.h>

#include <memory>
#include <string>

namespace memsieve::trainer {

/// The trained model with its adapters off, or a frozen copy in the dtype that it computes in.
class StartingModel {
 public:
  /// `trained` has adapters; it must outlive this.
  explicit StartingModel(Model& trained) : model_(trained) {}
  /// `copy` is frozen here.
  explicit StartingModel(std::unique_ptr<Model> copy);

  /// As Model::predict, without gradient.
  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition);

  /// Bytes that it takes beside the trained model; 0 with adapters.
  int64_t bytes() const;
  /// Of its weights (diffusion/models/lora/lora.h): a run that is resumed must compare with the same.
  const std::string& fingerprint() const { return model_.base_fingerprint(); }

 private:
  std::unique_ptr<Model> copy_;
  Model& model_;
};

}  // namespace memsieve::trainer
