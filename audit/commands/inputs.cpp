#include <audit/commands/inputs.h>
#include <diffusion/data/rows.h>
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

std::vector<std::string> captions_of(const Prompts& prompts) {
  std::vector<int64_t> ids(static_cast<size_t>(prompts.size()));
  std::iota(ids.begin(), ids.end(), 0);
  return prompts.data().captions(ids);
}

}  // namespace memsieve::audit
