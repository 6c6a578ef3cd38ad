#include <ATen/ATen.h>
#include <audit/measure/extractor.h>
#include <c10/core/GradMode.h>
#include <memsieve/detail/hash.h>
#include <memsieve/detail/printable.h>
#include <memsieve/detail/regular_file.h>
#include <memsieve/error.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <fstream>
#include <sstream>
#include <vector>

namespace memsieve::audit {

namespace {

/// Pictures that are looked at in one go.
constexpr int64_t kLookedAtOnce = 16;

std::string shape_text(const at::Tensor& tensor) {
  std::ostringstream out;
  out << tensor.sizes();
  return out.str();
}

/// What a TorchScript error is about stands in its last line, behind a trace of its source.
std::string last_line(const std::exception& error) {
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  std::istringstream lines(torch != nullptr ? torch->what_without_backtrace() : error.what());
  std::string last;
  for (std::string line; std::getline(lines, line);)
    if (line.find_first_not_of(" \t") != std::string::npos) last = line;
  return detail::printable(last);
}

/// Of a file, read in blocks: weights may be large.
std::string content_hash(const std::string& where, const std::string& path) {
  detail::require_regular_file<ConfigError>(path);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw ConfigError(where + ": " + path + ": no such file, or it cannot be read");
  std::vector<char> block(1 << 20);
  uint64_t hash = detail::kFnv1aStart;
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())) || in.gcount() > 0)
    hash = detail::fnv1a(block.data(), static_cast<size_t>(in.gcount()), hash);
  if (in.bad()) throw DataError(path + ": cannot be read");
  return detail::in_hex(hash);
}

}  // namespace

struct Extractor::Module {
  torch::jit::Module script;
};

Extractor::Extractor(Extractor&&) noexcept = default;
Extractor& Extractor::operator=(Extractor&&) noexcept = default;
Extractor::~Extractor() = default;

Extractor::Extractor(const std::string& where, std::string path, const Preset& preset, const at::Tensor& example,
                     c10::Device device)
    : path_(std::move(path)), preset_(&preset), device_(device) {
  identity_ = content_hash(where, path_) + ", " + preset.name;
  try {
    module_ = std::make_unique<Module>(Module{torch::jit::load(path_, device)});
  } catch (const std::exception& error) {
    throw DataError(path_ + ": is no TorchScript module that can be loaded on " + device.str() + " (" +
                    last_line(error) + "); save one with torch.jit.trace(model, example).save(FILE)");
  }
  module_->script.eval();
  width_ = answer(example).size(1);
}

at::Tensor Extractor::answer(const at::Tensor& pictures) const {
  const c10::NoGradGuard no_grad;
  // Optimised graphs round otherwise than the first runs, so that numbers would depend on how many went before.
  const torch::jit::GraphOptimizerEnabledGuard as_written(false);
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < pictures.size(0); begin += kLookedAtOnce) {
    const int64_t count = std::min(kLookedAtOnce, pictures.size(0) - begin);
    const at::Tensor input = preprocessed(pictures.narrow(0, begin, count).to(device_), *preset_);
    const std::string asked = "pictures " + shape_text(input) + " float32 on " + device_.str();
    c10::IValue found;
    try {
      found = module_->script.forward({input});
    } catch (const std::exception& error) {
      throw DataError(path_ + ": does not take " + asked + " (" + last_line(error) +
                      "); export it in float32 for this device, or choose another preset");
    }
    if (!found.isTensor() || !found.toTensor().is_floating_point())
      throw DataError(path_ + ": must answer one tensor of numbers for " + asked +
                      "; wrap the model so that it returns only that");
    at::Tensor values = found.toTensor().to(at::kCPU, at::kFloat);
    if (values.dim() == 1) values = values.unsqueeze(1);
    if (values.dim() != 2 || values.size(0) != count || values.size(1) == 0)
      throw DataError(path_ + ": answers " + shape_text(found.toTensor()) + " for " + asked +
                      ", not a row for each; export it with a free number of pictures");
    if (width_ != 0 && values.size(1) != width_)
      throw DataError(path_ + ": answers " + std::to_string(values.size(1)) + " numbers for each of " + asked +
                      ", but " + std::to_string(width_) + " when it was tried; export it with a fixed width");
    if (!values.isfinite().all().item<bool>())
      throw DataError(path_ + ": answers NaN or Inf for " + asked + "; export it in float32, with sound weights");
    parts.push_back(values);
  }
  return at::cat(parts);
}

at::Tensor Extractor::features(const at::Tensor& pictures) const {
  const at::Tensor found = answer(pictures);
  return found / found.norm(2, {1}, true).clamp_min(1e-12);
}

at::Tensor Extractor::scores(const at::Tensor& pictures) const {
  return answer(pictures).select(1, 0);
}

}  // namespace memsieve::audit
