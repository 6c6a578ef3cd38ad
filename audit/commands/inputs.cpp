#include <audit/commands/inputs.h>
#include <ATen/ATen.h>
#include <diffusion/data/rows.h>
#include <memsieve/detail/hash.h>
#include <runtime/agreement.h>

#include <numeric>

namespace memsieve::audit {

std::optional<Prompts> open_prompts(const AuditConfig& config, AuditedModel& model, Group& group) {
  std::optional<Prompts> prompts;
  on_all_ranks(group, [&] {
    prompts = Prompts::open(config.prompts);
    model.model.denoiser().check_takes(row_shape(prompts->data()), config.prompts);
  });
  return prompts;
}

std::string pictures_identity(const Prompts& prompts) {
  uint64_t hash = detail::kFnv1aStart;
  for (int64_t row = 0; row < prompts.data().size(); ++row) {
    const at::Tensor latents = prompts.data().load({row}).latents.contiguous();
    hash = detail::fnv1a(latents.const_data_ptr(), latents.nbytes(), hash);
  }
  return std::to_string(prompts.data().size()) + " pictures, " + std::to_string(hash);
}

std::vector<std::string> captions_of(const Prompts& prompts) {
  std::vector<int64_t> ids(static_cast<size_t>(prompts.size()));
  std::iota(ids.begin(), ids.end(), 0);
  return prompts.data().captions(ids);
}

}  // namespace memsieve::audit
