#pragma once
// A user's TorchScript module that looks at pictures: copy detection (SSCD), CLIP's image tower, an aesthetic score.

#include <ATen/core/Tensor.h>
#include <audit/measure/preprocessing.h>
#include <c10/core/Device.h>

#include <memory>
#include <string>

namespace memsieve::audit {

class Extractor {
 public:
  /// Loads FILE onto `device` and tries it on `example`, pictures as it will be given. `where` names the option in
  /// messages. Throws ConfigError for a file that is not there, DataError for one that is no TorchScript module or does
  /// not answer as the functions below need it.
  Extractor(const std::string& where, std::string path, const Preset& preset, const at::Tensor& example,
            c10::Device device);
  Extractor(Extractor&&) noexcept;
  Extractor& operator=(Extractor&&) noexcept;
  ~Extractor();

  /// [B, 3, H, W] uint8 -> [B, width()] float32 on the CPU, each row scaled to length 1. Throws DataError for what is
  /// not finite.
  at::Tensor features(const at::Tensor& pictures) const;
  /// The same of a module that answers [B] or [B, 1]: [B] float32, as it says.
  at::Tensor scores(const at::Tensor& pictures) const;

  /// Numbers that it answers for each picture.
  int64_t width() const { return width_; }
  const std::string& path() const { return path_; }
  const std::string& preset() const { return preset_->name; }
  /// Of the file's content and the preset.
  const std::string& identity() const { return identity_; }

 private:
  struct Module;
  at::Tensor answer(const at::Tensor& pictures) const;

  std::string path_, identity_;
  const Preset* preset_;
  c10::Device device_;
  std::unique_ptr<Module> module_;
  int64_t width_ = 0;
};

}  // namespace memsieve::audit
