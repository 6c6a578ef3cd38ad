#pragma once
// Before training: what does the model at the start already find easy?

#include <memsieve/sieve.h>
#include <runtime/group.h>
#include <diffusion/data/rows.h>
#include <trainer/rooms.h>

namespace memsieve::trainer {

/// COLLECTIVE. Shows the sieve every training sample and every held-out picture once per draw, divided over the
/// ranks; noise is keyed by (seed, sample, draw). Returns false if the run was asked to stop meanwhile (then the
/// sieve has no reference).
bool reference_pass(Sieve& sieve, Model& model, const RowMaker& training, const RowMaker* held_out, Group& group,
                    const TrainConfig& config);

}  // namespace memsieve::trainer
