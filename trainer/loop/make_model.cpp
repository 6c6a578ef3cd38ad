#include <ATen/ATen.h>
#include <diffusion/models/families.h>
#include <diffusion/models/finite_weights.h>
#include <runtime/agreement.h>
#include <runtime/reducer.h>
#include <trainer/loop/make_model.h>

namespace memsieve::trainer {

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
