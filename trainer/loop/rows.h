#pragma once
// From samples to noisy rows. All randomness is keyed by what a row is, never by which rank holds it.

#include <memsieve/batch.h>
#include <trainer/data/dataset.h>
#include <trainer/diffusion/keyed.h>
#include <trainer/diffusion/schedule.h>
#include <trainer/diffusion/training_noise.h>
#include <trainer/loop/model.h>

#include <string>
#include <vector>

namespace memsieve::trainer {

/// Noised rows, ready for the model. On the device except `ids`.
struct NoisyRows {
  at::Tensor ids;          ///< [B] int64 on the CPU
  at::Tensor timestep;     ///< [B] int64
  at::Tensor noisy;        ///< [B, C, H, W] float32
  at::Tensor target;       ///< like noisy
  Conditioning condition;  ///< float32; the empty caption where it was dropped
  at::Tensor captioned;    ///< [B] bool
};

/// Rows with all that NoisyRows are made from, still on the host, pinned where the device is a GPU.
struct HostRows {
  at::Tensor ids;                 ///< [B] int64, not pinned
  at::Tensor timestep;            ///< [B] int64
  at::Tensor latents;             ///< [B, C, H, W] float32, drawn where the set holds distributions
  at::Tensor noise, input_noise;  ///< like latents; one tensor without input perturbation
  at::Tensor uncaptioned;         ///< [B] bool
  Conditioning condition;         ///< float32
};

/// Makes NoisyRows of one data set under one schedule.
class RowMaker {
 public:
  RowMaker(Dataset data, const NoiseSchedule& schedule, c10::Device device);

  /// `timestep` [B] int64, `noise` of [B, C, H, W] and `uncaptioned` [B] bool (or undefined = none) are CPU
  /// tensors; `label` the ids that the rows are to carry. Throws DataError for a row that cannot be read or
  /// holds a NaN.
  /// Depends on the arguments alone, so it may run ahead on another thread.
  HostRows gather(const std::vector<int64_t>& rows, const std::vector<int64_t>& label,
                  const at::Tensor& timestep, const RowNoise& noise,
                  const at::Tensor& uncaptioned = {}) const;
  NoisyRows make(const HostRows& rows) const;
  /// Both at once.
  NoisyRows make(const std::vector<int64_t>& rows, const std::vector<int64_t>& label,
                 const at::Tensor& timestep, const RowNoise& noise,
                 const at::Tensor& uncaptioned = {}) const {
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

/// What the sieve wants to know of rows that the model has answered with `prediction`. The batch keeps
/// references: use it at once.
Batch batch_of(Model& model, const NoisyRows& rows, const at::Tensor& prediction, const Conditioning& null);

/// [B]: mean over C, H, W of (prediction - target)^2.
at::Tensor row_losses(const at::Tensor& prediction, const at::Tensor& target);

}  // namespace memsieve::trainer
