#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <runtime/stop.h>
#include <trainer/loop/train_step.h>
#include <trainer/loop/sieve_batch.h>

#include <algorithm>

namespace memsieve::trainer {

StepNumbers step_numbers(const std::vector<double>& v) {
  return {v.at(0), v.at(1), v.at(2), v.at(3), v.at(4), v.at(5), v.at(6), v.at(7), v.at(8)};
}

namespace {

/// The rows of one micro-batch of this rank, a function of the configuration and the step alone.
HostRows gather_rows(const Session& s, const Sampler& sampler, int64_t step, int64_t micro) {
  const int64_t rank = s.group.rank();
  const uint64_t seed = s.config.seed;
  const NoiseOptions& options = s.config.diffusion.noise;
  const auto keys = place_keys(step, sampler.place(micro, rank, 0), s.config.train_batch_size);
  const auto ids = sampler.rows(step, micro, rank);
  return s.training->gather(ids, ids,
                            training_timesteps(seed, Stream::train_timestep, keys, s.schedule.num_timesteps(), options),
                            s.training->noise(seed, kTrainNoise, keys, options),
                            keyed_bernoulli(seed, Stream::train_caption, keys, s.config.proportion_empty_prompts));
}

}  // namespace

TrainStep::TrainStep(Session& session) : s_(session) {}

HostRows TrainStep::next_rows(int64_t step, int64_t micro) {
  const int64_t per_step = s_.config.accumulation, index = step * per_step + micro;
  if (!ahead_ || index != ahead_next_) {
    // A sampler of its own: it caches permutations, and runs on another thread.
    const auto make = [&s = s_, sampler = *s_.sampler, per_step](int64_t i) {
      return gather_rows(s, sampler, i / per_step, i % per_step);
    };
    const int64_t end = std::max(s_.config.max_train_steps * per_step, index + 1);
    ahead_.emplace(make, index, end, s_.config.prefetch);
  }
  ahead_next_ = index + 1;
  return ahead_->take(index);
}

NoisyRows TrainStep::rows(int64_t step, int64_t micro) {
  try {
    return s_.training->make(next_rows(step, micro));
  } catch (const Error&) {
    fail(std::current_exception());
  }
  // The peers wait for this rank's gradient: it goes on with rows of nothing, and all ranks stop after the step.
  const int64_t count = s_.config.train_batch_size;
  const auto& shape = s_.training->data().latent_shape();
  const auto real = at::TensorOptions(at::kFloat).device(s_.group.device());
  const at::Tensor nothing = at::zeros({count, shape[0], shape[1], shape[2]}, real);
  return {at::tensor(s_.sampler->rows(step, micro, s_.group.rank()), at::kLong),
          at::zeros({count}, real.dtype(at::kLong)),
          nothing,
          nothing,
          s_.training->nothing(count),
          at::zeros({count}, real.dtype(at::kBool))};
}

NoisyRows TrainStep::held_out_rows(const std::vector<HeldOutVisit>& visits, int64_t step) {
  const NoiseOptions& options = s_.config.diffusion.noise;
  std::vector<int64_t> pictures, labels, t;
  std::vector<RowKey> keys;
  for (const auto& visit : visits) {
    pictures.push_back(visit.picture);
    labels.push_back(visit.id);
    t.push_back(timestep_at(visit.timestep_fraction, s_.schedule.num_timesteps(), options));
    keys.push_back({step, visit.place});
  }
  const RowNoise noise = s_.held_out->noise(s_.config.seed, kHeldOutNoise, keys, options);
  return s_.held_out->make(pictures, labels, at::tensor(t, at::kLong), noise);
}

at::Tensor TrainStep::micro_step(const Clock& clock, int64_t micro) {
  const NoisyRows batch = rows(clock.step, micro);
  ended(Part::data);
  const at::Tensor prediction = s_.model->predict(batch.noisy, batch.timestep, batch.condition);
  const at::Tensor plain = row_losses(prediction, batch.target);
  const double gamma = s_.config.diffusion.snr_gamma;
  const at::Tensor row_loss = gamma > 0 ? plain * s_.schedule.min_snr_weight(batch.timestep, gamma) : plain;
  ended(Part::forward);
  at::Tensor loss;
  if (s_.sieve) {
    Batch seen = batch_of(*s_.model, batch, prediction, s_.training->null());
    seen.null_prediction = [&](const at::Tensor& which) { return null_prediction(batch, which); };
    loss = s_.sieve->inspect(seen, clock).loss(row_loss);
  } else {
    loss = row_loss.mean();
    if (s_.config.accumulation > 1) loss = loss / static_cast<double>(s_.config.accumulation);
  }
  ended(Part::probe);
  s_.reducer->prepare(loss, /*sync=*/micro + 1 == s_.config.accumulation);
  (s_.loss_scale ? loss * s_.loss_scale->scale() : loss).backward();
  ended(Part::backward);
  return plain.detach().sum().to(at::kDouble);
}

void TrainStep::make_held_out(int64_t step) {
  held_out_.reset();
  const auto visits = s_.sieve->held_out_visits(step);
  if (visits.empty()) return;
  try {
    held_out_ = HeldOut{held_out_rows(visits, step), {}};
  } catch (const Error&) {
    fail(std::current_exception());
  }
}

/// Held-out rows that wait for their prediction share the forward: a small pass costs more per row than a large one.
at::Tensor TrainStep::null_prediction(const NoisyRows& rows, const at::Tensor& which) {
  at::NoGradGuard no_grad;
  const at::Tensor noisy = rows.noisy.index_select(0, which), timestep = rows.timestep.index_select(0, which);
  const Conditioning null = rows.condition.select(which).uncaptioned(s_.training->null());
  if (!held_out_ || held_out_->prediction.defined()) return s_.model->predict(noisy, timestep, null);
  const NoisyRows& more = held_out_->rows;
  const at::Tensor both =
      s_.model->predict(at::cat({noisy, more.noisy}), at::cat({timestep, more.timestep}), cat(null, more.condition));
  held_out_->prediction = both.slice(0, which.size(0));
  return both.slice(0, 0, which.size(0));
}

void TrainStep::observe_held_out(const Clock& clock) {
  if (!held_out_) return;
  at::NoGradGuard no_grad;
  const NoisyRows& rows = held_out_->rows;
  at::Tensor& prediction = held_out_->prediction;
  if (!prediction.defined()) prediction = s_.model->predict(rows.noisy, rows.timestep, rows.condition);
  s_.sieve->observe(batch_of(*s_.model, rows, prediction, s_.held_out->null()), clock);
}

at::Tensor TrainStep::run(int64_t step) {
  const Clock clock{step, s_.sampler->epoch(step)};
  const auto real = at::TensorOptions(at::kDouble).device(s_.group.device());
  at::Tensor sums = at::zeros({4}, real);
  if (s_.sieve) make_held_out(step);
  ended(Part::data);
  for (int64_t micro = 0; micro < s_.config.accumulation; ++micro) sums[0] += micro_step(clock, micro);
  StepEnd end;
  if (s_.sieve) {
    observe_held_out(clock);
    ended(Part::probe);
    end = s_.sieve->end_step(clock);
    ended(Part::reduce);
  } else {
    const at::Tensor no = at::zeros({}, real.dtype(at::kFloat));
    end = {at::ones_like(no), no, no};
  }
  const at::Tensor loss_scale = s_.loss_scale ? s_.loss_scale->scale().to(at::kDouble) : at::zeros({}, real);
  if (s_.loss_scale) end.grad_scale = end.grad_scale * s_.loss_scale->scale();
  Update update = s_.optimizer->step(end);
  if (s_.loss_scale) update.nonfinite = s_.loss_scale->adapt(end.skip, update.nonfinite);
  update.nonfinite = at::maximum(update.nonfinite, end.nonfinite);
  if (s_.ema) s_.ema->update(s_.optimizer->updates(), update.skipped);
  ended(Part::optimiser);
  if (stop_requested()) sums[1].fill_(1);
  if (failure_) {
    sums[2].fill_(1);
    sums[3].fill_(s_.group.rank() + 1);
  }
  s_.group.all_reduce_sum(sums);
  ended(Part::reduce);
  const at::Tensor mine = at::stack({update.grad_norm.to(at::kDouble), update.lr.to(at::kDouble),
                                     update.skipped.to(at::kDouble), update.nonfinite.to(at::kDouble), loss_scale});
  return at::cat({sums, mine});
}

}  // namespace memsieve::trainer
