#pragma once
// How well a model predicts pictures under the same noise.

#include <audit/model/audited_model.h>
#include <diffusion/data/dataset.h>
#include <diffusion/noise/keyed.h>

#include <cstdint>
#include <vector>

namespace memsieve::audit {

/// `draws` timesteps of `count`, each in the middle of one of as many equal parts.
std::vector<int64_t> middle_timesteps(int64_t count, int64_t draws);

struct PredictionErrorOptions {
  uint64_t seed = 0;
  /// noises of each row, at timesteps in the middle of equal parts of all
  int64_t draws = 16;
  Stream stream = Stream::canary_noise;
};

/// For each of `rows` of `data` the mean over draws of the prediction's error, itself the mean over C, H, W of squares.
/// Noise is keyed by (seed, `key`, draw), the same for all rows: two rows with one key differ in their picture and
/// caption alone. All rows are predicted at once. Throws NonFiniteError, naming the row.
std::vector<double> prediction_errors(const Dataset& data, const std::vector<int64_t>& rows, int64_t key,
                                      AuditedModel& model, const PredictionErrorOptions& options);

}  // namespace memsieve::audit
