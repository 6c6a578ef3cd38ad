#pragma once
// A training set in one HDF5 file: pictures or latents, caption embeddings, captions. The layout is
// in docs/data_format.md.

#include <ATen/core/Tensor.h>
#include <diffusion/data/codec.h>
#include <diffusion/models/common/conditioning.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace memsieve::diffusion {

/// Some rows, on the CPU.
struct Rows {
  /// [B, C, H, W] float32 as the model sees them; where there is latent_std, the means
  at::Tensor latents;
  /// like latents: standard deviations of the VAE's answer; or undefined
  at::Tensor latent_std;
  /// its tensors are float32
  Conditioning condition;
  /// [B] int64
  at::Tensor ids;
};

/// [B, C, H, W] float32: latents + latent_std * noise, as the VAE's distribution wants it (Kingma and Welling,
/// "Auto-Encoding Variational Bayes", 2014); the latents themselves for a set without latent_std, where `noise` may be
/// undefined. noise: standard normal, like latents.
at::Tensor sample_latents(const Rows& rows, const at::Tensor& noise);

/// From a VAE's latents z to what the model sees: (z - shift_factor) * scaling_factor, as in diffusers.
struct LatentScale {
  double scaling_factor = 1;
  double shift_factor = 0;
  bool operator==(const LatentScale&) const = default;
};

struct DatasetOptions {
  /// sets up to this size are read whole on open; larger ones row by row
  int64_t cache_bytes = int64_t{256} << 20;
  /// rows may be asked for mirrored: for a set of latents the file must hold those
  bool flips = false;
};

/// Read-only; cheap to copy (copies share the file). Loading is safe from several threads: HDF5 calls are serialised.
/// Every error is a DataError naming the file, the dataset in it and, where there is one, the row. Whatever is loaded
/// comes from a file that is still what it was when it was opened: one that has shrunk or changed since is an error,
/// even where its rows are held in memory, because a run that is resumed would go on with others.
class Dataset {
 public:
  /// Checks format, shapes, dtypes and row counts of everything, and that the file can hold them, before any row is
  /// read; for a set that fits the cache also that no latent and no embedding is NaN or Inf.
  static Dataset open(const std::string& path, const DatasetOptions& options = {});

  /// N, at least 1
  int64_t size() const;
  /// {C, H, W} as the model sees it
  const std::vector<int64_t>& latent_shape() const;
  /// L
  int64_t text_length() const;
  /// D
  int64_t text_dim() const;
  /// the empty caption, float32: text [L, D], no time_ids
  const Conditioning& null() const;
  /// [N], or empty if the file has none
  const std::vector<int64_t>& group_ids() const;
  /// nullopt for a set of latents
  const std::optional<Codec>& codec() const;
  /// already applied to what load() gives
  const LatentScale& latent_scale() const;
  /// rows are drawn with sample_latents() at each visit
  bool has_latent_std() const;
  /// P, or 0 for a set without pooled text and time_ids
  int64_t pooled_dim() const;
  const std::string& path() const;
  bool cached() const;

  /// Rows in the order of `ids`; an id may occur twice. `flipped`: [B] bool, the rows to give mirrored left to right
  /// (only with DatasetOptions::flips), or undefined = none. Throws DataError for an id outside [0, size()) or a NaN
  /// or Inf.
  Rows load(const std::vector<int64_t>& ids, const at::Tensor& flipped = {}) const;
  /// The captions of rows, UTF-8. Throws DataError for an id outside [0, size()).
  std::vector<std::string> captions(const std::vector<int64_t>& ids) const;
  /// The stored pictures [B, 3, H, W] uint8. Throws DataError for a set of latents.
  at::Tensor load_images(const std::vector<int64_t>& ids) const;

  /// DataError if the file has shrunk or changed since it was opened, or another one has taken its place.
  void require_unchanged() const;

  /// Throws DataError unless `other` (validation, held-out, prompts) has the same latent shape, text shape, codec and
  /// scale, and /latent_std and /pooled if this has.
  void check_matches(const Dataset& other) const;

 private:
  struct Impl;
  explicit Dataset(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace memsieve::diffusion
