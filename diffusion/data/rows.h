#pragma once
// From samples to noisy rows. All randomness is keyed by what a row is, never by which rank holds it.

#include <diffusion/data/dataset.h>
#include <diffusion/models/common/denoiser.h>
#include <diffusion/noise/keyed.h>
#include <diffusion/noise/schedule.h>
#include <diffusion/noise/training_noise.h>

#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Noised rows, ready for the model. On the device except `ids`.
struct NoisyRows {
  /// [B] int64 on the CPU
  at::Tensor ids;
  /// [B] int64
  at::Tensor timestep;
  /// [B, C, H, W] float32
  at::Tensor noisy;
  /// like noisy
  at::Tensor target;
  /// float32; the empty caption where it was dropped
  Conditioning condition;
  /// [B] bool
  at::Tensor captioned;
  /// [B, F] float32: caption and a small version of the picture, each of length 1; alike for copies
  at::Tensor likeness = {};
};

/// Rows with all that NoisyRows are made from, still on the host, pinned where the device is a GPU.
struct HostRows {
  /// [B] int64, not pinned
  at::Tensor ids;
  /// [B] int64
  at::Tensor timestep;
  /// [B, C, H, W] float32, drawn where the set holds distributions
  at::Tensor latents;
  /// like latents; one tensor without input perturbation
  at::Tensor noise, input_noise;
  /// [B] bool
  at::Tensor uncaptioned;
  /// its tensors are float32
  Conditioning condition;
};

/// Makes NoisyRows of one data set under one schedule.
class RowMaker {
 public:
  RowMaker(Dataset data, const NoiseSchedule& schedule, c10::Device device);

  /// `timestep` [B] int64, `noise` of [B, C, H, W] and `uncaptioned` [B] bool (or undefined = none) are CPU tensors;
  /// `label` the ids that the rows are to carry. Throws DataError for a row that cannot be read or holds a NaN. Depends
  /// on the arguments alone, so it may run ahead on another thread.
  HostRows gather(const std::vector<int64_t>& rows, const std::vector<int64_t>& label, const at::Tensor& timestep,
                  const RowNoise& noise, const at::Tensor& uncaptioned = {}) const;
  NoisyRows make(const HostRows& rows) const;
  /// Both at once.
  NoisyRows make(const std::vector<int64_t>& rows, const std::vector<int64_t>& label, const at::Tensor& timestep,
                 const RowNoise& noise, const at::Tensor& uncaptioned = {}) const {
    return make(gather(rows, label, timestep, noise, uncaptioned));
  }

  /// training_noise() in the shape of this set's latents, with what draws them where it holds distributions.
  RowNoise noise(uint64_t seed, const NoiseStreams& streams, const std::vector<RowKey>& keys,
                 const NoiseOptions& options) const;

  const Dataset& data() const { return data_; }
  const NoiseSchedule& schedule() const { return schedule_; }
  /// The empty caption, on the device.
  const Conditioning& null() const { return null_; }
  /// `rows` rows of the empty caption, with time_ids of 0 if the model has such.
  Conditioning nothing(int64_t rows) const;

 private:
  at::Tensor pinned(const at::Tensor& tensor) const;
  at::Tensor to_device(const at::Tensor& tensor) const;
  Dataset data_;
  const NoiseSchedule& schedule_;
  c10::Device device_;
  Conditioning null_;
};

/// What a model must take to be asked about such rows.
RowShape row_shape(const Dataset& data);

/// [B]: mean over C, H, W of (prediction - target)^2.
at::Tensor row_losses(const at::Tensor& prediction, const at::Tensor& target);

}  // namespace memsieve::diffusion
