#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <memsieve/error.h>
#include <runtime/reducer.h>
#include <runtime/agreement.h>
#include <trainer/loop/model.h>

namespace memsieve::trainer {

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

Model::Model(UNet2DConditionModel unet, c10::Device device, std::optional<at::ScalarType> autocast,
             int64_t first_timestep)
    : unet_(std::move(unet)), device_(device), autocast_(autocast), first_timestep_(first_timestep) {
  unet_->to(device_, at::kFloat);
  for (auto& p : unet_->parameters()) {
    // Convolutions are faster so, and their gradients come in these strides, those of 1x1 kernels too.
    if (p.dim() != 4) continue;
    p.set_data(
        at::empty(p.sizes(), p.options().requires_grad(false), at::MemoryFormat::ChannelsLast).copy_(p.detach()));
  }
  unet_->train();
}

at::Tensor Model::predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) {
  const Autocast autocast(device_.type(), autocast_);
  return unet_
      ->forward(sample.contiguous(at::MemoryFormat::ChannelsLast),
                first_timestep_ == 0 ? timestep : timestep + first_timestep_, condition)
      .to(at::kFloat);
}

void Model::add_lora(const LoraConfig& config, uint64_t seed, const std::string& where) {
  base_fingerprint_ = fingerprint(unet_);
  lora_.emplace(unet_, config, seed, where);
  if (!autocast_) return;
  for (const auto& module : unet_->modules(/*include_self=*/false)) {
    if (dynamic_cast<Adaptable*>(module.get()) != nullptr) module->to(*autocast_);
  }
}

NamedTensors Model::parameters() const {
  if (lora_) return lora_->parameters();
  NamedTensors out;
  for (const auto& item : unet_->named_parameters()) out.emplace_back(item.key(), item.value());
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
    save_unet(folder, unet_);
}

Model make_model(const TrainConfig& config, const std::string& checkpoint, const NoiseSchedule& schedule,
                 Group& group) {
  UNet2DConditionModel unet{nullptr};
  on_all_ranks(group, [&] {
    const bool whole = !checkpoint.empty() && !config.lora;
    const std::string from = whole ? checkpoint + "/unet" : unet_folder(config.model_pretrained);
    if (!from.empty()) {
      unet = load_unet(from);
    } else {
      at::manual_seed(config.seed);
      unet = UNet2DConditionModel(read_unet_config(config.model_config));
    }
  });
  unet->set_gradient_checkpointing(config.gradient_checkpointing);
  Model model(unet, group.device(), config.autocast, schedule.first_timestep());
  broadcast_parameters(model.parameter_list(), group);
  if (!config.lora) return model;
  on_all_ranks(group, [&] {
    model.add_lora(*config.lora, config.seed, config.settings.where("lora"));
    const std::string from = checkpoint.empty() ? config.lora_pretrained : checkpoint + "/lora/" + lora_file_name;
    if (!from.empty()) model.lora()->restore(from);
  });
  broadcast_parameters(model.parameter_list(), group);
  return model;
}

void check_model_fits(const UNetConfig& model, const Dataset& data) {
  const auto remedy = "; use a model made for this data set, or prepare the data with this model's pipeline";
  const auto expect = [&](const std::string& what, int64_t model_has, int64_t data_has) {
    if (model_has == data_has) return;
    throw ConfigError("model: " + what + " is " + std::to_string(model_has) + ", but " + data.path() + " has " +
                      std::to_string(data_has) + remedy);
  };
  expect("in_channels", model.in_channels, data.latent_shape().at(0));
  expect("out_channels", model.out_channels, data.latent_shape().at(0));
  expect("its text dimension (encoder_hid_dim or cross_attention_dim)", model.text_dim(), data.text_dim());
  if (!model.has_text_time()) {
    if (data.pooled_dim() == 0) return;
    throw ConfigError("model: takes text alone, but " + data.path() + " has /pooled and /time_ids as for SDXL" +
                      remedy);
  }
  if (data.pooled_dim() == 0)
    throw ConfigError("model: takes pooled text and time ids (addition_embed_type text_time, as SDXL), but " +
                      data.path() + " has no /pooled and /time_ids" + remedy);
  expect("its pooled text's width, beside 6 time ids,", model.pooled_dim(), data.pooled_dim());
}

}  // namespace memsieve::trainer
