#pragma once
// The part of the configuration that says which noise is trained and drawn with. Where the starting model brings a
// diffusers scheduler_config.json, its values are the defaults of these keys.

#include <memsieve/schema.h>
#include <diffusion/models/diffusers/scheduler_file.h>
#include <diffusion/noise/training_noise.h>
#include <trainer/trainer_rooms.h>

#include <string>
#include <vector>

namespace memsieve::trainer {

struct DiffusionConfig {
  ScheduleConfig schedule;
  NoiseOptions noise;
  double snr_gamma = 0;
  DdimOptions draw;
};

/// The scheduler file that YAML text and overrides name in `model.scheduler`, or that lies beside the denoiser of
/// `model.pretrained`, or defaults with an empty path. Throws ConfigError.
SchedulerFile scheduler_for(const std::string& yaml, const std::string& source,
                            const std::vector<std::string>& overrides);

/// prediction_type, beta_schedule and so on, at the top level.
void add_diffusion_keys(Schema& schema, const SchedulerFile& file);
/// timestep_spacing and so on, in `sampling:`.
void add_sampling_keys(Schema& schema, const SchedulerFile& file);

/// Throws ConfigError, with the place of the key, for a schedule that cannot be trained or drawn with.
DiffusionConfig diffusion_of(const Settings& settings);

/// What the user should be told, a line each: that nothing says what a pretrained model predicts, keys that the YAML
/// sets to another value than the file, and drawing that does not begin where a zero-terminal-SNR schedule ends.
std::vector<std::string> scheduler_notes(const Settings& settings, const SchedulerFile& file);

}  // namespace memsieve::trainer
