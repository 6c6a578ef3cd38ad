#include <memsieve/error.h>
#include <diffusion/models/unet/unet_family.h>

namespace memsieve::diffusion {

namespace {

class UNetDenoiser : public Denoiser {
 public:
  explicit UNetDenoiser(UNet2DConditionModel unet) : unet_(std::move(unet)) {}

  at::Tensor predict(const at::Tensor& sample, const at::Tensor& timestep, const Conditioning& condition) override {
    return unet_->forward(sample, timestep, condition);
  }
  torch::nn::Module& module() override { return *unet_; }
  std::string component() const override { return "unet"; }
  void set_gradient_checkpointing(bool on) override { unet_->set_gradient_checkpointing(on); }
  void check_takes(const RowShape& rows, const std::string& from) const override;
  void save(const std::string& folder) override { save_unet(folder, unet_); }

 private:
  UNet2DConditionModel unet_;
};

void UNetDenoiser::check_takes(const RowShape& rows, const std::string& from) const {
  const UNetConfig& model = unet_->config();
  const auto remedy = "; use a model made for this data set, or prepare the data with this model's pipeline";
  const auto expect = [&](const std::string& what, int64_t model_has, int64_t data_has) {
    if (model_has == data_has) return;
    throw ConfigError("model: " + what + " is " + std::to_string(model_has) + ", but " + from + " has " +
                      std::to_string(data_has) + remedy);
  };
  expect("in_channels", model.in_channels, rows.latents.at(0));
  expect("out_channels", model.out_channels, rows.latents.at(0));
  expect("its text dimension (encoder_hid_dim or cross_attention_dim)", model.text_dim(), rows.text_dim);
  if (!model.has_text_time()) {
    if (rows.pooled_dim == 0) return;
    throw ConfigError("model: takes text alone, but " + from + " has /pooled and /time_ids as for SDXL" + remedy);
  }
  if (rows.pooled_dim == 0)
    throw ConfigError("model: takes pooled text and time ids (addition_embed_type text_time, as SDXL), but " + from +
                      " has no /pooled and /time_ids" + remedy);
  expect("its pooled text's width, beside 6 time ids,", model.pooled_dim(), rows.pooled_dim);
}

}  // namespace

std::unique_ptr<Denoiser> unet_denoiser(UNet2DConditionModel unet) {
  return std::make_unique<UNetDenoiser>(std::move(unet));
}

std::unique_ptr<Denoiser> load_unet_denoiser(const std::string& folder) {
  return unet_denoiser(load_unet(folder));
}

std::unique_ptr<Denoiser> make_unet_denoiser(const std::string& config_path) {
  return unet_denoiser(UNet2DConditionModel(read_unet_config(config_path)));
}

}  // namespace memsieve::diffusion
