// memsieve-unet: runs a UNet (or VAE) folder once in float32, so that other implementations can be compared with ours.

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mean.h>
#include <memsieve/error.h>
#include <diffusion/io/safetensors.h>
#include <diffusion/models/lora/lora.h>
#include <diffusion/models/unet/unet.h>
#include <diffusion/models/vae/vae_decoder.h>

#include <boost/program_options.hpp>
#include <iostream>
#include <optional>

namespace {

using namespace memsieve::diffusion;
namespace po = boost::program_options;

struct Arguments {
  std::string folder, inputs, out, save_to, lora;
  bool gradients = false, shapes = false, vae = false;
};

// False if only --help was asked for.
bool parse(int argc, char** argv, Arguments& a) {
  po::options_description visible(
      "memsieve-unet FOLDER --inputs FILE --out FILE [options]\n"
      "memsieve-unet FOLDER --vae --inputs FILE --out FILE\n"
      "memsieve-unet FOLDER --shapes\n"
      "Runs the UNet of a diffusers folder on `sample` [B,C,H,W], `timestep` [B], `encoder_hidden_states`\n"
      "[B,L,D] and, for SDXL only, `text_embeds` [B,P] and `time_ids` [B,N] of a safetensors file, in float32\n"
      "on the CPU, and writes `prediction` to another.\nOptions");
  visible.add_options()("help", "show this text")  //
      ("inputs", po::value(&a.inputs), "safetensors file with the inputs")("out", po::value(&a.out),
                                                                           "safetensors file to write")(
          "gradients", po::bool_switch(&a.gradients),
          "also write grad.<parameter>, the gradient of mean(prediction^2); with --lora: of the adapter's")(
          "lora", po::value(&a.lora), "apply the LoRA adapter of this safetensors file")(
          "save-to", po::value(&a.save_to), "also write the model to this folder")(
          "vae", po::bool_switch(&a.vae),
          "FOLDER is a VAE: decode `latents` [B,C,H,W] of the inputs, write `images` [B,3,8H,8W] of about -1..1")(
          "shapes", po::bool_switch(&a.shapes),
          "only print the name and shape of every parameter that config.json asks for");
  po::options_description all;
  all.add(visible).add_options()("folder", po::value(&a.folder)->required(), "the UNet folder");
  po::variables_map values;
  po::store(po::command_line_parser(argc, argv)
                .options(all)
                .positional(po::positional_options_description().add("folder", 1))
                .run(),
            values);
  if (values.count("help") > 0) {
    std::cout << visible;
    return false;
  }
  po::notify(values);
  if (a.vae && (a.gradients || a.shapes || !a.save_to.empty()))
    throw po::error("--vae goes with --inputs and --out only");
  for (const char* name : {"inputs", "out"})
    if (!a.shapes && values.count(name) == 0) throw po::required_option(std::string("--") + name);
  return true;
}

at::Tensor input(const TensorMap& inputs, const std::string& path, const std::string& name) {
  const auto found = inputs.find(name);
  if (found == inputs.end()) throw memsieve::DataError(path + ": tensor '" + name + "' is missing");
  return found->second;
}

void run(const Arguments& a) {
  if (a.shapes) {
    std::cout << unet_shapes(a.folder);
    return;
  }
  const TensorMap inputs = load_safetensors(a.inputs);
  if (a.vae) {
    const at::Tensor images = load_vae_decoder(a.folder)->decode(input(inputs, a.inputs, "latents"));
    return save_safetensors(a.out, {{"images", images}});
  }
  UNet2DConditionModel model = load_unet(a.folder);
  std::optional<Lora> lora;
  if (!a.lora.empty()) lora = Lora::load(*model, a.lora);
  const auto required = [&](const std::string& name) { return input(inputs, a.inputs, name); };
  const auto optional = [&](const std::string& name) {
    return inputs.count(name) > 0 ? inputs.at(name) : at::Tensor();
  };
  const Conditioning condition(required("encoder_hidden_states"), optional("text_embeds"), optional("time_ids"));
  at::AutoGradMode mode(a.gradients);
  const at::Tensor prediction = model->forward(required("sample"), required("timestep"), condition);
  TensorMap out = {{"prediction", prediction}};
  if (a.gradients) {
    prediction.square().mean().backward();
    if (lora) {
      for (const auto& [name, parameter] : lora->parameters()) out.emplace("grad." + name, parameter.grad());
    } else {
      for (const auto& item : model->named_parameters()) out.emplace("grad." + item.key(), item->grad());
    }
  }
  save_safetensors(a.out, out);
  if (!a.save_to.empty()) save_unet(a.save_to, model);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Arguments arguments;
    if (parse(argc, argv, arguments)) run(arguments);
    return 0;
  } catch (const memsieve::DataError& e) {
    std::cerr << "memsieve-unet: " << e.what() << "\n";
    return 3;
  } catch (const std::exception& e) {
    std::cerr << "memsieve-unet: " << memsieve::one_line(e) << "\n";
    return 2;
  }
}
