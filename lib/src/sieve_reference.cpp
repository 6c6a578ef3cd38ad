// The reference pass: what the starting model finds easy. It runs once, before training, so the host may wait.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <limits>

#include "nan.h"
#include "sieve_impl.h"

namespace memsieve {

namespace {

at::Tensor column(const at::Tensor& t) {
  return t.to(at::kDouble).unsqueeze(1);
}

/// The host may wait here, and a row without a signal need not be paid for. One is asked for in any case: how often the
/// model is called must not depend on what the rows hold.
at::Tensor rows_to_ask_for(const RawScores&, const at::Tensor& eligible) {
  const auto rows = at::nonzero(eligible).squeeze(1);
  return rows.size(0) > 0 ? rows : at::zeros({1}, rows.options());
}

/// The model that the pass shows is the starting model, so what that predicts need not be asked for.
Batch before_training(Batch batch) {
  batch.counterfactuals["start"] = [prediction = batch.prediction](const at::Tensor& rows) {
    return prediction.index_select(0, rows);
  };
  return batch;
}

/// What compares the model with the starting model says nothing yet: a scale of zeros would make extremes of all that
/// comes later.
void leave_out_start(RawScores& scores, const std::vector<Channel>& channels) {
  for (size_t c = 0; c < channels.size(); ++c) {
    if (channels[c].reads_start) scores.raw.select(1, static_cast<int64_t>(c)).fill_(kNaN);
  }
}

/// Rows whose signals hold a NaN or Inf: an error naming the first, or no signal at all.
void settle_nonfinite(RawScores& scores, const at::Tensor& ids, bool held_out, bool fail) {
  const auto bad = at::nonzero(scores.nonfinite).squeeze(1).to(at::kCPU);
  if (bad.size(0) == 0) return;
  if (fail) {
    const auto id = ids[bad[0].item<int64_t>()].item<int64_t>();
    throw NonFiniteError((held_out ? "held-out picture " : "sample ") + std::to_string(id) +
                         ": NaN or Inf in what the starting model predicts for it (look at the sample, train in bf16 "
                         "or float32, or set on_nonfinite: skip)");
  }
  scores.raw.masked_fill_(scores.nonfinite.unsqueeze(1), kNaN);
}

/// Every picture must have been drawn: one without would count as of average easiness.
void check_complete(const at::Tensor& picture, int64_t samples, int64_t held_out) {
  const auto seen = at::bincount(picture, {}, samples + held_out) > 0;
  const auto missing = at::nonzero(seen.logical_not()).squeeze(1).to(at::kCPU);
  if (missing.size(0) == 0) return;
  const auto first = missing[0].item<int64_t>();
  throw DataError(
      "reference pass: " + std::to_string(missing.size(0)) + " of " + std::to_string(samples + held_out) +
      " pictures were not drawn, the first of them " +
      (first < samples ? "sample " + std::to_string(first) : "held-out picture " + std::to_string(first - samples)) +
      "; call reference() for every sample and every held-out picture before finish_reference()");
}

}  // namespace

int64_t Sieve::reference_draws() const {
  return impl_->judge.options().reference.draws;
}
bool Sieve::has_reference() const {
  return impl_->reference_known;
}

bool Sieve::reference(const Batch& batch, bool held_out) {
  auto& s = *impl_;
  if (!s.judge.options().reference.is_on()) return true;
  Impl::Asking asking;
  asking.rows = 1;
  const Batch shown = before_training(batch);
  try {
    const int64_t samples = s.setup.dataset_size;
    s.check_batch(batch, std::numeric_limits<int64_t>::max());
    const auto ids = s.device_ids(batch, held_out ? s.setup.held_out_size : samples);
    const at::NoGradGuard no_grad;
    RawScores scores = s.signals.measure(shown, rows_to_ask_for, asking.done);
    leave_out_start(scores, s.signals.channels());
    settle_nonfinite(scores, batch.sample_id, held_out, s.options.fail_on_nonfinite);
    const auto picture = ids + (held_out ? samples : 0);
    s.draws.push_back(at::cat(
        {column(picture), column(at::full_like(picture, held_out ? 1 : 0)), column(scores.timestep),
         column(scores.stratum.defined() ? scores.stratum : at::zeros_like(picture)), scores.raw.to(at::kDouble)},
        1));
    return true;
  } catch (...) {
    s.fail_asking(shown, asking);
    return false;
  }
}

void Sieve::finish_reference() {
  auto& s = *impl_;
  if (!s.judge.options().reference.is_on()) return;
  const auto real = at::device(s.setup.device).dtype(at::kDouble);
  const int64_t width = 4 + s.shape.channels;
  const auto mine = s.draws.empty() ? at::empty({0, width}, real) : at::cat(s.draws);
  s.draws.clear();
  // The sizes are gathered first, then lines padded to the longest rank's.
  auto head = s.record.flat().slice(0, 0, RecordShape::kHeader + RecordShape::kMessage).clone();
  head[RecordShape::extra] = static_cast<double>(mine.size(0));
  const auto heads = s.communicator->all_gather(head).to(at::kCPU);
  s.record.clear();
  s.reporter.throw_peer_error("reference pass: ", heads);
  const auto longest = static_cast<int64_t>(heads.select(1, RecordShape::extra).max().item<double>());
  if (longest == 0)
    throw DataError("reference pass: no draws; call reference() for every sample before finish_reference()");
  const auto padded = at::constant_pad_nd(mine, {0, 0, 0, longest - mine.size(0)}, -1).reshape({-1});
  auto all = s.communicator->all_gather(padded).reshape({-1, width});
  all = all.index_select(0, at::nonzero(all.select(1, 0) >= 0).squeeze(1));
  check_complete(all.select(1, 0).to(at::kLong), s.setup.dataset_size, s.setup.held_out_size);
  // By picture and timestep, so that the result does not depend on how the ranks divided the work.
  all = all.index_select(
      0, at::argsort(all.select(1, 0) * static_cast<double>(s.setup.num_timesteps) + all.select(1, 2), true, 0, false));
  RawScores scores;
  scores.timestep = all.select(1, 2).to(at::kFloat);
  scores.stratum = all.select(1, 3).to(at::kLong);
  scores.raw = all.slice(1, 4).to(at::kFloat);
  s.judge.set_reference(all.select(1, 0).to(at::kLong), scores, all.select(1, 1) > 0);
  s.reference_known = true;
}

}  // namespace memsieve
