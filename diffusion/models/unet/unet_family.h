#pragma once
// diffusers' UNet2DConditionModel as one of the families (diffusion/models/families.h).

#include <diffusion/models/common/denoiser.h>
#include <diffusion/models/unet/unet.h>

#include <memory>
#include <string>

namespace memsieve::diffusion {

/// A UNet behind the interface; both share its parameters.
std::unique_ptr<Denoiser> unet_denoiser(UNet2DConditionModel unet);

/// The same of a folder (load_unet), or with random weights (from ATen's default CPU generator) for a config.json.
std::unique_ptr<Denoiser> load_unet_denoiser(const std::string& folder);
std::unique_ptr<Denoiser> make_unet_denoiser(const std::string& config_path);

}  // namespace memsieve::diffusion
