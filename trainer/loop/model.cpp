#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <memsieve/error.h>
#include <trainer/dist/reducer.h>
#include <trainer/loop/agree.h>
#include <trainer/loop/model.h>

namespace memsieve::trainer {

namespace {

/// Autocast for a scope. Its cache of casted weights must not outlive the scope: weights change, and copies
/// made without gradient must not be found by a pass with gradient.
class Autocast {
 public:
  Autocast(c10::DeviceType device, bool on) : device_(device), on_(on) {
    if (!on_) return;
    at::autocast::increment_nesting();
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
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

Model::Model(UNet2DConditionModel unet, c10::Device device, bool bf16)
    : unet_(std::move(unet)), device_(device), bf16_(bf16) {
  unet_->to(device_, at::kFloat);
  for (auto& p : unet_->parameters()) {
    // Convolutions are faster so, and their gradients come in these strides, those of 1x1 kernels too.
    if (p.dim() != 4) continue;
    p.set_data(at::empty(p.sizes(), p.options().requires_grad(false), at::MemoryFormat::ChannelsLast)
                   .copy_(p.detach()));
  }
  unet_->train();
}

at::Tensor Model::predict(const at::Tensor& sample, const at::Tensor& timestep,
                          const Conditioning& condition) {
  Autocast autocast(device_.type(), bf16_);
  return unet_->forward(sample.contiguous(at::MemoryFormat::ChannelsLast), timestep, condition)
      .to(at::kFloat);
}

NamedTensors Model::parameters() const {
  NamedTensors out;
  for (const auto& item : unet_->named_parameters()) out.emplace_back(item.key(), item.value());
  return out;
}

std::vector<at::Tensor> Model::parameter_list() const {
  return unet_->parameters();
}

Model make_model(const TrainConfig& config, const std::string& folder, Group& group) {
  UNet2DConditionModel unet{nullptr};
  on_all_ranks(group, [&] {
    const std::string from = folder.empty() ? config.model_pretrained : folder;
    if (!from.empty()) {
      unet = load_unet(from);
    } else {
      at::manual_seed(config.seed);
      unet = UNet2DConditionModel(read_unet_config(config.model_config));
    }
  });
  Model model(unet, group.device(), config.bf16);
  broadcast_parameters(model.parameter_list(), group);
  return model;
}

void check_model_fits(const UNetConfig& model, const std::vector<int64_t>& latent_shape, int64_t text_dim,
                      const std::string& data_path) {
  const auto expect = [&](const std::string& what, int64_t model_has, int64_t data_has) {
    if (model_has == data_has) return;
    throw ConfigError("model: " + what + " is " + std::to_string(model_has) + ", but " + data_path + " has " +
                      std::to_string(data_has) + "; use a model made for this data set");
  };
  expect("in_channels", model.in_channels, latent_shape.at(0));
  expect("out_channels", model.out_channels, latent_shape.at(0));
  expect("its text dimension (encoder_hid_dim or cross_attention_dim)", model.text_dim(), text_dim);
}

}  // namespace memsieve::trainer
