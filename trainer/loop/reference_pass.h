#pragma once
// Before training: what does the model at the start already find easy?

#include <diffusion/data/rows.h>
#include <diffusion/models/model.h>
#include <memsieve/sieve.h>
#include <runtime/group.h>
#include <trainer/trainer_rooms.h>

#include <functional>

namespace memsieve::trainer {

struct ReferenceOptions {
  uint64_t seed = 0;
  NoiseOptions noise;
  /// rows of one forward, at most
  int64_t batch_size = 16;
};

/// COLLECTIVE. Shows the sieve every training sample and every held-out picture (`held_out` may be null) once per draw,
/// divided over the ranks; noise is keyed by (seed, sample, draw). Every rank calls the model equally often: one that
/// has no rows left shows what it has shown before to a sieve of its own, which `spare` makes like `sieve` and which is
/// then forgotten. Returns false if the run was asked to stop meanwhile (then the sieve has no reference).
bool reference_pass(Sieve& sieve, Model& model, const RowMaker& training, const RowMaker* held_out, Group& group,
                    const ReferenceOptions& options, const std::function<Sieve()>& spare);

}  // namespace memsieve::trainer
