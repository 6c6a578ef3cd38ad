#pragma once
// Checkpoints: a folder that appears whole or not at all.
//
//   step-000880/unet/            diffusers folder; with LoRA instead lora/, which holds the adapter file
//               unet_ema/        the same with the averaged weights, if use_ema; or lora_ema/
//               scheduler/       scheduler_config.json: the noise that was trained with, for diffusers
//               optimizer.safetensors
//               sieve.safetensors, if there is a sieve
//               state.json       written last; lists every other file with its size and CRC-32, and has its own

#include <diffusion/io/safetensors.h>
#include <memsieve/error.h>
#include <trainer/trainer_rooms.h>

#include <functional>
#include <optional>
#include <string>

namespace memsieve::trainer {

/// Endings of a checkpoint's folder while it is written, and of the one of the same step that it replaces.
constexpr const char* kTemporary = ".tmp";
constexpr const char* kReplaced = ".replaced";

/// What state.json holds.
struct CheckpointState {
  /// optimiser steps done
  int64_t step = 0;
  uint64_t seed = 0;
  int64_t world_size = 1, global_batch = 0, nonfinite_in_a_row = 0;
  /// in the stream of samples: where the next step begins. Checkpoints that do not say are of runs
  /// that passed over none
  int64_t stream_position = 0;
  std::string run_id;
  /// the configuration's binding keys as YAML (Keys::binding): what must not change when resuming
  std::string meaning;
  /// the UNet that the adapters belong to (diffusion/models/lora/lora.h), "" without LoRA
  std::string base;
  /// what the training and held-out data were
  std::string data;
  bool has_ema = false, has_sieve = false;
};

/// What goes into a checkpoint besides its state.
struct CheckpointParts {
  /// "unet" or "lora"
  std::string weights_name;
  std::function<void(const std::string& folder)> save_weights;
  /// empty = no EMA
  std::function<void(const std::string& folder)> save_weights_ema;
  /// text of scheduler_config.json
  std::string scheduler;
  TensorMap optimizer;
  std::optional<TensorMap> sieve;
};

/// A checkpoint that is not whole, or not what was written; an older one may serve in its place.
class DamagedCheckpoint : public DataError {
 public:
  explicit DamagedCheckpoint(const std::string& reason);
  /// what() without the remedy
  const std::string& reason() const noexcept { return reason_; }

 private:
  std::string reason_;
};

/// Writes to `folder`.tmp, syncs everything to disk and renames. If `folder` exists it is replaced. The folder that it
/// lies in is made, but none above that: a run's folder that is gone stays so. Throws DataError, and then
/// leaves nothing.
void write_checkpoint(const std::string& folder, const CheckpointState& state, const CheckpointParts& parts);

/// How closely the files that state.json lists are looked at.
enum class Verify { sizes, contents };

/// Reads state.json and checks that every file it lists is there and has its size; with Verify::contents also its
/// content, which reads all of it (checkpoints of older versions have no CRC-32: there the size is all). Throws
/// DamagedCheckpoint saying which piece is missing or torn, DataError if it cannot be read or a newer version wrote it.
CheckpointState read_checkpoint_state(const std::string& folder, Verify verify);

}  // namespace memsieve::trainer
