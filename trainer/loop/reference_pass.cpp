#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <trainer/loop/reference_pass.h>
#include <trainer/loop/counterfactuals.h>
#include <runtime/stop.h>

#include <algorithm>

namespace memsieve::trainer {

namespace {

/// Rows first .. last - 1 of one data set at one draw.
struct Chunk {
  bool held_out;
  int64_t draw, first, last;
};

std::vector<Chunk> chunks_of(int64_t draws, int64_t training, int64_t held_out, int64_t rows) {
  std::vector<Chunk> chunks;
  for (const bool side : {true, false}) {
    const int64_t size = side ? held_out : training;
    for (int64_t draw = 0; draw < draws; ++draw) {
      for (int64_t first = 0; first < size; first += rows) {
        chunks.push_back({side, draw, first, std::min(size, first + rows)});
      }
    }
  }
  return chunks;
}

class ReferencePass {
 public:
  ReferencePass(Model& model, const RowMaker& training, const RowMaker* held_out, const ReferenceOptions& options,
                int64_t draws)
      : model_(model), training_(training), held_out_(held_out), options_(options), draws_(draws) {}

  bool show(Sieve& sieve, const Chunk& chunk) const {
    const RowMaker& maker = chunk.held_out ? *held_out_ : training_;
    const int64_t timesteps = maker.schedule().num_timesteps();
    const auto timestep = static_cast<int64_t>((static_cast<double>(chunk.draw) + 0.5) / static_cast<double>(draws_) *
                                               static_cast<double>(timesteps));
    std::vector<int64_t> ids;
    std::vector<RowKey> keys;
    for (int64_t id = chunk.first; id < chunk.last; ++id) {
      ids.push_back(id);
      keys.push_back({chunk.held_out ? -1 - id : id, chunk.draw});
    }
    const RowNoise noise = maker.noise(options_.seed, kReferenceNoise, keys, options_.noise);
    const at::Tensor t = at::full({static_cast<int64_t>(ids.size())}, timestep, at::kLong);
    const NoisyRows rows = maker.make(ids, ids, t, noise);
    Counterfactuals counterfactuals(model_, /*start=*/nullptr);
    Batch batch = batch_of(rows, model_.predict(rows.noisy, rows.timestep, rows.condition));
    batch.counterfactuals = counterfactuals.of(rows, maker.null());
    return sieve.reference(batch, chunk.held_out);
  }

 private:
  Model& model_;
  const RowMaker& training_;
  const RowMaker* held_out_;
  const ReferenceOptions& options_;
  int64_t draws_;
};

}  // namespace

bool reference_pass(Sieve& sieve, Model& model, const RowMaker& training, const RowMaker* held_out, Group& group,
                    const ReferenceOptions& options, const std::function<Sieve()>& spare) {
  at::NoGradGuard no_grad;
  // Adapters that a run starts from may have memorised these very pictures: the model below them is what counts.
  const AdaptersOff off(model);
  const int64_t draws = sieve.reference_draws();
  const auto chunks =
      chunks_of(draws, training.data().size(), held_out == nullptr ? 0 : held_out->data().size(), options.batch_size);
  const auto rounds = (static_cast<int64_t>(chunks.size()) + group.world_size() - 1) / group.world_size();
  log_info("reference pass: " + std::to_string(draws) + " draws of " + std::to_string(training.data().size()) +
           " training samples under the starting model");
  Progress progress("reference", rounds, std::max<int64_t>(1, rounds / 4));
  const ReferencePass pass(model, training, held_out, options, draws);
  // Every rank takes part in every round, with or without a chunk of its own: a model that is spread over the ranks
  // waits for all of them.
  bool good = true;
  for (int64_t round = 0; round < rounds; ++round) {
    on_all_ranks(group, [&] {
      const auto mine = static_cast<size_t>(round * group.world_size() + group.rank());
      if (mine < chunks.size()) {
        good = pass.show(sieve, chunks[mine]);
      } else {
        Sieve forgotten = spare();
        pass.show(forgotten, chunks.back());
      }
    });
    if (group.any(!good)) break;  // finish_reference says what went wrong
    if (group.any(stop_requested())) return false;
    progress.show(round + 1, "");
  }
  sieve.finish_reference();
  return true;
}

}  // namespace memsieve::trainer
