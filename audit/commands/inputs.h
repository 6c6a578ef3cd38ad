#pragma once
// What commands open alike.

#include <audit/data/prompts.h>
#include <audit/model/audited_model.h>
#include <diffusion/models/vae/picture_decoder.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::audit {

/// COLLECTIVE (agreement on errors). The prompts that the configuration names. Throws DataError, and ConfigError if the
/// model does not take them.
std::optional<Prompts> open_prompts(const AuditConfig& config, AuditedModel& model, Group& group);

/// Of the picture or latents of each prompt, as the model sees them.
std::vector<uint64_t> picture_hashes(const Prompts& prompts);

/// Which pictures these are, all together; `hashes` are those of picture_hashes.
std::string pictures_identity(const std::vector<uint64_t>& hashes);
/// The same of the prompts' pictures; "none" where their file holds none.
std::string pictures_identity(const Prompts& prompts);

/// Which rows these are, in their order.
std::string rows_identity(const std::vector<int64_t>& rows);

/// [R, 3, H, W] uint8 on the CPU: the own pictures of prompts `rows`, latents decoded on `device`. Only for prompts
/// that have pictures.
at::Tensor own_pictures(const Prompts& prompts, const std::vector<int64_t>& rows, PictureDecoder& decoder,
                        c10::Device device);

/// Of the prompts, without variants.
std::vector<std::string> captions_of(const Prompts& prompts);

}  // namespace memsieve::audit
