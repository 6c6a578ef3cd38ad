#include <ATen/ATen.h>
#include <audit/commands/inputs.h>
#include <audit/measure/drawing.h>
#include <diffusion/data/rows.h>
#include <memsieve/detail/hash.h>
#include <runtime/agreement.h>
#include <runtime/log.h>

namespace memsieve::audit {

namespace {

std::string size_text(const std::vector<int64_t>& size) {
  return std::to_string(size.at(0)) + " x " + std::to_string(size.at(1));
}

}  // namespace

std::optional<Prompts> open_prompts(const AuditConfig& config, AuditedModel& model, Group& group) {
  std::optional<Prompts> prompts;
  on_all_ranks(group, [&] {
    prompts = Prompts::open(config.prompts);
    model.model.denoiser().check_takes(row_shape(prompts->data()), config.prompts);
  });
  const auto& shape = prompts->data().latent_shape();
  const std::vector<int64_t> size(shape.begin() + 1, shape.end());
  if (group.rank() == 0 && !model.sample_size.empty() && size != model.sample_size)
    log_warning(config.prompts + ": has latents of " + size_text(size) + ", but the model was made for " +
                size_text(model.sample_size) +
                "; it may draw badly, and magnitudes of two sizes do not compare "
                "(`memsieve prompts --resolution`)");
  return prompts;
}

std::vector<uint64_t> picture_hashes(const Prompts& prompts) {
  std::vector<uint64_t> hashes;
  for (int64_t row = 0; row < prompts.size(); ++row) {
    const at::Tensor latents = prompts.data().load({row}).latents.contiguous();
    hashes.push_back(detail::fnv1a(latents.const_data_ptr(), latents.nbytes(), detail::kFnv1aStart));
  }
  return hashes;
}

std::string pictures_identity(const std::vector<uint64_t>& hashes) {
  const uint64_t all = detail::fnv1a(hashes.data(), hashes.size() * sizeof(uint64_t), detail::kFnv1aStart);
  return std::to_string(hashes.size()) + " pictures, " + detail::in_hex(all);
}

std::string pictures_identity(const Prompts& prompts) {
  return prompts.has_pictures() ? pictures_identity(picture_hashes(prompts)) : "none";
}

std::string rows_identity(const std::vector<int64_t>& rows) {
  const uint64_t all = detail::fnv1a(rows.data(), rows.size() * sizeof(int64_t), detail::kFnv1aStart);
  return std::to_string(rows.size()) + ", " + detail::in_hex(all);
}

at::Tensor own_pictures(const Prompts& prompts, const std::vector<int64_t>& rows, PictureDecoder& decoder,
                        c10::Device device) {
  if (prompts.data().codec()) return prompts.data().load_images(rows);
  return decoder.decode(prompts.data().load(rows).latents.to(device)).cpu();
}

std::vector<std::string> captions_of(const Prompts& prompts) {
  return prompts.data().captions(first_rows(prompts.size()));
}

}  // namespace memsieve::audit
