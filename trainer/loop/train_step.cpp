#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <runtime/stop.h>
#include <trainer/loop/train_step.h>
#include <trainer/optim/forget_gradient.h>

#include <algorithm>
#include <array>

namespace memsieve::trainer {

namespace {

/// Steps that are planned ahead: as far as the sieve knows whom it will have passed over.
constexpr int64_t kPlannedAhead = kFlagLag - 3;

/// The rows `ids` of a micro-batch that begins at place `place` of step `step`, and the rows `forget` of the set to
/// forget beside them, a function of these and the configuration alone.
HostBatch gather_rows(const RunData& data, const StepOptions& options, const std::vector<int64_t>& ids,
                      const std::vector<int64_t>& forget, int64_t step, int64_t place) {
  const auto keys = place_keys(step, place, options.train_batch_size);
  const at::Tensor timestep =
      training_timesteps(options.seed, Stream::train_timestep, keys, data.schedule.num_timesteps(), options.noise);
  // Where the training set holds distributions, the set to forget does, too, but not the other way round.
  const RowNoise noise =
      (data.forget ? *data.forget : *data.training).noise(options.seed, kTrainNoise, keys, options.noise);
  HostBatch batch{.keep = data.training->gather(
                      ids, ids, timestep, noise,
                      keyed_bernoulli(options.seed, Stream::train_caption, keys, options.proportion_empty_prompts))};
  if (data.forget) batch.forget = data.forget->gather(forget, forget, timestep, noise);
  return batch;
}

/// The numbers of this rank alone, behind those that were summed.
at::Tensor all_numbers(const at::Tensor& sums, const Update& update, const at::Tensor& loss_scale,
                       const at::Tensor& forget_weight) {
  std::array<at::Tensor, kStepNumbers - kSummedNumbers> mine;
  const auto put = [&](StepNumber number, const at::Tensor& value) {
    mine.at(static_cast<size_t>(static_cast<int64_t>(number) - kSummedNumbers)) = value.to(at::kDouble);
  };
  put(StepNumber::grad_norm, update.grad_norm);
  put(StepNumber::lr, update.lr);
  put(StepNumber::skipped, update.skipped);
  put(StepNumber::nonfinite, update.nonfinite);
  put(StepNumber::loss_scale, loss_scale);
  put(StepNumber::forget_weight, forget_weight);
  return at::cat({sums, at::stack(mine)});
}

}  // namespace

TrainStep::TrainStep(const StepOptions& options, const StepParts& parts)
    : options_(options),
      data_(parts.data),
      sampler_(parts.sampler),
      trainee_(parts.trainee),
      sieve_(parts.sieve),
      group_(parts.group),
      counterfactuals_(trainee_.model(), parts.start) {
  if (sieve_ != nullptr && options_.pass_over) plan_.emplace(sampler_, options_.first_step, options_.stream_position);
  if (!data_.forget) return;
  forget_sampler_.emplace(data_.forget->data().size(), group_.world_size(), options_.train_batch_size,
                          options_.accumulation, keyed_bits(options_.seed, Stream::forget_shuffle, {}),
                          Repeats::allowed);
  forget_.resize(static_cast<size_t>(options_.accumulation));
}

int64_t TrainStep::stream_position(int64_t step) const {
  return plan_ ? plan_->position(step) : step * sampler_.global_batch_size();
}

void TrainStep::plan(int64_t step) {
  plan_->forget_before(step);
  const int64_t last = std::max(step, std::min(step + kPlannedAhead, options_.max_train_steps - 1));
  while (plan_->end() <= last) plan_->add(sieve_->flagged(plan_->end()));
}

std::vector<int64_t> TrainStep::sample_ids(int64_t step, int64_t micro) const {
  return plan_ ? plan_->rows(step, micro, group_.rank()) : sampler_.rows(step, micro, group_.rank());
}

HostBatch TrainStep::next_rows(int64_t step, int64_t micro) {
  const int64_t per_step = options_.accumulation, index = step * per_step + micro;
  if (!ahead_ || index != ahead_next_) {
    // Samplers of its own: they cache permutations, and it runs on another thread.
    const auto make = [&data = data_, options = options_, sampler = sampler_, forget = forget_sampler_,
                       plan = plan_ ? &*plan_ : nullptr, rank = group_.rank(), per_step](int64_t i) {
      const int64_t of = i / per_step, micro_batch = i % per_step;
      const auto ids = plan != nullptr ? plan->rows(of, micro_batch, rank) : sampler.rows(of, micro_batch, rank);
      const auto forget_ids = forget ? forget->rows(of, micro_batch, rank) : std::vector<int64_t>();
      return gather_rows(data, options, ids, forget_ids, of, sampler.place(micro_batch, rank, 0));
    };
    const int64_t end = plan_ ? 0 : options_.max_train_steps * per_step;
    ahead_.emplace(make, index, std::max(end, index + 1), options_.prefetch);
  }
  if (plan_) ahead_->extend(plan_->end() * per_step);
  ahead_next_ = index + 1;
  return ahead_->take(index);
}

NoisyRows TrainStep::nothing(const std::vector<int64_t>& ids) const {
  const auto count = static_cast<int64_t>(ids.size());
  const auto& shape = data_.training->data().latent_shape();
  const auto real = at::TensorOptions(at::kFloat).device(group_.device());
  const at::Tensor zeros = at::zeros({count, shape[0], shape[1], shape[2]}, real);
  return {.ids = at::tensor(ids, at::kLong),
          .timestep = at::zeros({count}, real.dtype(at::kLong)),
          .noisy = zeros,
          .target = zeros,
          .condition = data_.training->nothing(count),
          .captioned = at::zeros({count}, real.dtype(at::kBool))};
}

NoisyRows TrainStep::rows(int64_t step, int64_t micro) {
  if (plan_) plan(step);
  if (data_.forget) forget_.at(micro).reset();
  try {
    HostBatch batch = next_rows(step, micro);
    if (data_.forget) forget_.at(micro) = std::move(batch.forget);
    return data_.training->make(batch.keep);
  } catch (const Error&) {
    fail(std::current_exception());
  }
  // The peers wait for this rank's gradient: it goes on with rows of nothing, and all ranks stop after the step.
  return nothing(sample_ids(step, micro));
}

NoisyRows TrainStep::held_out_rows(const std::vector<HeldOutVisit>& visits, int64_t step) {
  std::vector<int64_t> pictures, labels, t;
  std::vector<RowKey> keys;
  for (const auto& visit : visits) {
    pictures.push_back(visit.picture);
    labels.push_back(visit.id);
    t.push_back(timestep_at(visit.timestep_fraction, data_.schedule.num_timesteps(), options_.noise));
    keys.push_back({step, visit.place});
  }
  const RowNoise noise = data_.held_out->noise(options_.seed, kHeldOutNoise, keys, options_.noise);
  return data_.held_out->make(pictures, labels, at::tensor(t, at::kLong), noise);
}

NoisyRows TrainStep::look_rows(const std::vector<Look>& looks, int64_t step) {
  std::vector<int64_t> ids, t;
  std::vector<RowKey> keys;
  for (const auto& look : looks) {
    ids.push_back(look.id);
    t.push_back(timestep_at(look.timestep_fraction, data_.schedule.num_timesteps(), options_.noise));
    keys.push_back({step, look.place});
  }
  const RowNoise noise = data_.training->noise(options_.seed, kLookNoise, keys, options_.noise);
  return data_.training->make(ids, ids, at::tensor(t, at::kLong), noise);
}

void TrainStep::make_extra_rows(int64_t step) {
  held_out_.reset();
  looks_.reset();
  counterfactuals_.forget();
  const auto visits = sieve_->held_out_visits(step);
  const auto looks = sieve_->looks(step);
  if (visits.empty() && looks.empty()) return;
  try {
    if (!looks.empty()) looks_ = look_rows(looks, step);
    if (!visits.empty()) held_out_ = held_out_rows(visits, step);
    counterfactuals_.await(held_out_, looks_);
  } catch (const Error&) {
    held_out_.reset();
    looks_.reset();
    fail(std::current_exception());
  }
}

void TrainStep::observe_extra_rows(const Clock& clock) {
  const at::NoGradGuard no_grad;
  const int64_t held_out = held_out_ ? held_out_->noisy.size(0) : 0;
  if (held_out_) {
    Batch seen = batch_of(*held_out_, counterfactuals_.awaited().slice(0, 0, held_out));
    seen.counterfactuals = counterfactuals_.of_held_out(data_.held_out->null(), data_.training->null());
    sieve_->observe(seen, clock);
  }
  if (looks_) {
    Batch seen = batch_of(*looks_, counterfactuals_.awaited().slice(0, held_out));
    seen.counterfactuals = counterfactuals_.of_looks(data_.training->null());
    sieve_->look(seen, clock);
  }
  const auto due = [&](int64_t every) { return every > 0 && clock.step % every == 0; };
  if (held_out_ || looks_ || !(due(options_.held_out_every) || due(options_.revisit_every))) return;
  // Other ranks call the model once more for rows of theirs, and a model that is spread over the ranks waits for all.
  const NoisyRows none = nothing({0});
  trainee_.model().predict(none.noisy, none.timestep, none.condition);
}

at::Tensor TrainStep::weighted(const at::Tensor& row_loss, const at::Tensor& timestep) const {
  const double gamma = options_.snr_gamma;
  return gamma > 0 ? row_loss * data_.schedule.min_snr_weight(timestep, gamma) : row_loss;
}

at::Tensor TrainStep::mean_loss(const at::Tensor& row_loss) const {
  const at::Tensor loss = row_loss.mean();
  return options_.accumulation > 1 ? loss / static_cast<double>(options_.accumulation) : loss;
}

at::Tensor TrainStep::micro_step(const Clock& clock, int64_t micro) {
  const NoisyRows batch = rows(clock.step, micro);
  note_progress();
  ended(Part::data);
  const at::Tensor prediction = trainee_.model().predict(batch.noisy, batch.timestep, batch.condition);
  const at::Tensor plain = row_losses(prediction, batch.target);
  const at::Tensor row_loss = weighted(plain, batch.timestep);
  ended(Part::forward);
  at::Tensor loss;
  if (sieve_ != nullptr) {
    Batch seen = batch_of(batch, prediction);
    seen.counterfactuals = counterfactuals_.of(batch, data_.training->null());
    loss = sieve_->inspect(seen, clock).loss(row_loss);
  } else {
    loss = mean_loss(row_loss);
  }
  ended(Part::probe);
  trainee_.backward(loss, /*sync=*/micro + 1 == options_.accumulation);
  ended(Part::backward);
  return plain.detach().sum().to(at::kDouble);
}

NoisyRows TrainStep::forget_rows(int64_t micro) {
  const auto& rows = forget_.at(micro);
  if (rows) return data_.forget->make(*rows);
  return nothing(std::vector<int64_t>(static_cast<size_t>(options_.train_batch_size), 0));
}

at::Tensor TrainStep::forget_micro_step(int64_t micro) {
  const NoisyRows batch = forget_rows(micro);
  note_progress();
  ended(Part::data);
  const at::Tensor prediction = trainee_.model().predict(batch.noisy, batch.timestep, batch.condition);
  const at::Tensor plain = row_losses(prediction, batch.target);
  const at::Tensor loss = mean_loss(weighted(plain, batch.timestep));
  ended(Part::forward);
  trainee_.backward(loss, /*sync=*/micro + 1 == options_.accumulation);
  ended(Part::backward);
  return plain.detach().sum().to(at::kDouble);
}

at::Tensor TrainStep::forget(const at::Tensor& loss_sum) {
  // The sieve never sees these rows: what they are is known.
  const auto parameters = trainee_.model().parameter_list();
  const auto keep = take_gradients(parameters);
  for (int64_t micro = 0; micro < options_.accumulation; ++micro) loss_sum.add_(forget_micro_step(micro));
  return subtract_forget_gradient(parameters, keep, options_.forget_share);
}

StepEnd TrainStep::end_step(const Clock& clock) {
  if (sieve_ == nullptr) {
    const at::Tensor no = at::zeros({}, at::TensorOptions(at::kFloat).device(group_.device()));
    return {.grad_scale = at::ones_like(no), .skip = no, .nonfinite = no};
  }
  observe_extra_rows(clock);
  ended(Part::probe);
  StepEnd end = sieve_->end_step(clock);
  ended(Part::reduce);
  return end;
}

at::Tensor TrainStep::run(int64_t step) {
  if (plan_) plan(step);
  const Clock clock{.step = step, .epoch = epoch(step)};
  if (plan_) sieve_->pass_over(plan_->passed_over(step), clock);
  at::Tensor sums = at::zeros({kSummedNumbers}, at::TensorOptions(at::kDouble).device(group_.device()));
  const auto sum = [&](StepNumber number) { return sums[static_cast<int64_t>(number)]; };
  if (sieve_ != nullptr) make_extra_rows(step);
  ended(Part::data);
  for (int64_t micro = 0; micro < options_.accumulation; ++micro) sum(StepNumber::loss_sum) += micro_step(clock, micro);
  at::Tensor forget_weight = at::zeros({}, sums.options());
  if (data_.forget) forget_weight = forget(sum(StepNumber::forget_loss_sum));
  const StepEnd end = end_step(clock);
  const at::Tensor loss_scale = trainee_.loss_scale();
  const Update update = trainee_.update(end);
  ended(Part::optimiser);
  if (stop_requested()) sum(StepNumber::stop).fill_(1);
  if (failure_) sum(StepNumber::failed).fill_(1);
  group_.all_reduce_sum(sums);
  ended(Part::reduce);
  return all_numbers(sums, update, loss_scale, forget_weight / end.grad_scale);
}

}  // namespace memsieve::trainer
