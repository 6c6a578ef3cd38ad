#pragma once
// What commands open alike.

#include <audit/data/prompts.h>
#include <audit/model/audited_model.h>

#include <optional>
#include <string>
#include <vector>

namespace memsieve::audit {

/// COLLECTIVE (agreement on errors). The prompts that the configuration names. Throws DataError, and ConfigError if the
/// model does not take them.
std::optional<Prompts> open_prompts(const AuditConfig& config, AuditedModel& model, Group& group);

/// Of the pictures or latents that the prompts' file holds.
std::string pictures_identity(const Prompts& prompts);

/// Of the prompts, without variants.
std::vector<std::string> captions_of(const Prompts& prompts);

}  // namespace memsieve::audit
