#include <ATen/ATen.h>
#include <diffusion/models/families.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/reducer.h>
#include <trainer/loop/make_model.h>

#include <cmath>

namespace memsieve::trainer {

namespace {

/// Nothing can be trained from a NaN or Inf: every step would fail. Waits for the device.
void require_finite(const std::string& name, const at::Tensor& values, const std::string& from) {
  if (values.numel() == 0 || !values.is_floating_point()) return;
  const auto [least, most] = at::aminmax(values);  // both are NaN if any value is
  if (std::isfinite(least.item<double>()) && std::isfinite(most.item<double>())) return;
  throw DataError(from + ": " + name + " holds a NaN or Inf; start from weights that do not");
}

}  // namespace

Model make_model(const ModelSource& options, const std::string& checkpoint, Group& group) {
  std::unique_ptr<Denoiser> denoiser;
  on_all_ranks(group, [&] {
    const bool whole = !checkpoint.empty() && !options.lora;
    const std::string from = whole ? checkpoint : options.pretrained;
    if (!from.empty()) {
      denoiser = load_denoiser(denoiser_folder(from));
      for (const auto& weight : denoiser->module().named_parameters())
        require_finite(weight.key(), weight.value().detach(), denoiser_folder(from));
    } else {
      at::manual_seed(options.seed);
      denoiser = make_denoiser(options.config);
    }
  });
  denoiser->set_gradient_checkpointing(options.gradient_checkpointing);
  Model model(std::move(denoiser), options.model);
  broadcast_parameters(model.parameter_list(), group);
  if (!options.lora) return model;
  on_all_ranks(group, [&] {
    model.add_lora(*options.lora, options.seed, options.lora_where);
    const std::string from = checkpoint.empty() ? options.lora_pretrained : checkpoint + "/lora/" + lora_file_name;
    if (from.empty()) return;
    model.lora()->restore(from);
    for (const auto& [name, weight] : model.lora()->parameters()) require_finite(name, weight.detach(), from);
  });
  broadcast_parameters(model.parameter_list(), group);
  return model;
}

Model make_starting_model(ModelSource source, Group& group) {
  source.lora.reset();
  source.gradient_checkpointing = false;
  return make_model(source, "", group);
}

}  // namespace memsieve::trainer
