#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <diffusion/models/model.h>

namespace memsieve::diffusion {

namespace {

/// Autocast for a scope. Its cache of casted weights must not outlive the scope: weights change, and copies made
/// without gradient must not be found by a pass with gradient.
class Autocast {
 public:
  Autocast(c10::DeviceType device, std::optional<at::ScalarType> dtype) : device_(device), on_(dtype.has_value()) {
    if (!on_) return;
    at::autocast::increment_nesting();
    at::autocast::set_autocast_dtype(device_, *dtype);
    at::autocast::set_autocast_enabled(device_, true);
  }
  ~Autocast() {
    if (!on_) return;
    at::autocast::set_autocast_enabled(device_, false);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  c10::DeviceType device_;
  bool on_;
};

}  // namespace

Model::Model(std::unique_ptr<Denoiser> denoiser, const ModelOptions& options)
    : denoiser_(std::move(denoiser)), options_(options) {
  torch::nn::Module& module = denoiser_->module();
  module.to(options_.device, at::kFloat);
  for (auto& p : module.parameters()) {
    // Convolutions are faster so, and their gradients come in these strides, those of 1x1 kernels too.
    if (p.dim() != 4) continue;
    p.set_data(
        at::empty(p.sizes(), p.options().requires_grad(false), at::MemoryFormat::ChannelsLast).copy_(p.detach()));
  }
  module.train();
}

at::Tensor Model::predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) {
  const Autocast autocast(options_.device.type(), options_.autocast);
  return denoiser_
      ->predict(sample.contiguous(at::MemoryFormat::ChannelsLast),
                options_.first_timestep == 0 ? timestep : timestep + options_.first_timestep, condition)
      .to(at::kFloat);
}

void Model::add_lora(const LoraConfig& config, uint64_t seed, const std::string& where) {
  torch::nn::Module& module = denoiser_->module();
  base_fingerprint_ = fingerprint(module);
  lora_.emplace(module, config, seed, where, denoiser_->component());
  keep_compute_dtype();
}

void Model::load_lora(const std::string& path) {
  torch::nn::Module& module = denoiser_->module();
  base_fingerprint_ = fingerprint(module);
  lora_.emplace(Lora::load(module, path, denoiser_->component()));
  keep_compute_dtype();
}

void Model::freeze() {
  torch::nn::Module& module = denoiser_->module();
  base_fingerprint_ = fingerprint(module);
  for (auto& p : module.parameters()) p.requires_grad_(false);
  keep_compute_dtype();
}

void Model::keep_compute_dtype() {
  if (!options_.autocast) return;
  for (const auto& layer : denoiser_->module().modules(/*include_self=*/false)) {
    if (dynamic_cast<Adaptable*>(layer.get()) != nullptr) layer->to(*options_.autocast);
  }
}

std::vector<std::pair<std::string, at::Tensor>> Model::parameters() const {
  if (lora_) return lora_->parameters();
  std::vector<std::pair<std::string, at::Tensor>> out;
  for (const auto& item : denoiser_->module().named_parameters()) out.emplace_back(item.key(), item.value());
  return out;
}

std::vector<at::Tensor> Model::parameter_list() const {
  std::vector<at::Tensor> out;
  for (const auto& [name, tensor] : parameters()) out.push_back(tensor);
  return out;
}

void Model::save(const std::string& folder) {
  if (lora_)
    lora_->save(folder);
  else
    denoiser_->save(folder);
}

}  // namespace memsieve::diffusion
