#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <memsieve/sieve.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "judge/held_out.h"
#include "sieve_impl.h"
#include "to_device.h"

namespace memsieve {

namespace {

/// The batch with the rows after the first `kept` exempt, so that no probe is spent on one that only fills up.
Batch counting(Batch batch, int64_t kept, at::Device device) {
  const int64_t rows = batch.prediction.size(0);
  if (kept == rows) return batch;
  const auto fills = to_device(at::arange(rows) >= kept, device);
  batch.exempt = batch.exempt.defined() ? to_device(batch.exempt, device).to(at::kBool) | fills : fills;
  return batch;
}

}  // namespace

int64_t Sieve::Impl::check_batch(const Batch& batch, int64_t most) const {
  if (!batch.prediction.defined() || batch.prediction.dim() < 2) bad_batch("prediction must be [B, C, ...]");
  if (!at::isFloatingType(batch.prediction.scalar_type()))
    bad_batch(std::string("prediction is ") + c10::toString(batch.prediction.scalar_type()) + ", not a floating type");
  const at::Device place = batch.prediction.device();
  if (place.type() != setup.device.type() ||
      (!place.is_cpu() && setup.device.has_index() && place.index() != setup.device.index())) {
    bad_batch("prediction is on " + place.str() + ", but the sieve was made for " + setup.device.str() +
              " (Setup::device); make it for the device that predictions are on");
  }
  const int64_t rows = batch.prediction.size(0);
  if (rows < 1 || rows > most) {
    bad_batch(std::to_string(rows) + " rows, but this call takes 1 to " + std::to_string(most));
  }
  const auto one_a_row = [&](const at::Tensor& t, const char* name) {
    if (t.dim() != 1 || t.size(0) != rows)
      bad_batch(std::string(name) + " must have the shape [" + std::to_string(rows) + "]");
  };
  if (!batch.target.defined() || batch.target.sizes() != batch.prediction.sizes())
    bad_batch("target has another shape than prediction");
  if (!batch.timestep.defined()) bad_batch("timestep is missing");
  one_a_row(batch.timestep, "timestep");
  if (batch.has_caption.defined()) one_a_row(batch.has_caption, "has_caption");
  if (batch.likeness.defined() && (batch.likeness.dim() < 2 || batch.likeness.size(0) != rows))
    bad_batch("likeness must be [" + std::to_string(rows) + ", F]");
  if (batch.exempt.defined()) one_a_row(batch.exempt, "exempt");
  check_stratum(batch, rows);
  if (!batch.timestep.is_cpu()) return rows;  // reading it would make the host wait
  const auto times = batch.timestep.detach().to(at::kDouble).contiguous();
  const auto* t = times.const_data_ptr<double>();
  if (!std::all_of(t, t + rows, [&](double x) { return x >= 0 && x < static_cast<double>(setup.num_timesteps); }))
    bad_batch("timesteps must lie in [0, " + std::to_string(setup.num_timesteps) + ")");
  return rows;
}

void Sieve::Impl::check_stratum(const Batch& batch, int64_t rows) const {
  if (!batch.stratum.defined()) return;
  if (batch.stratum.dim() != 1 || batch.stratum.size(0) != rows || batch.stratum.scalar_type() != at::kLong)
    bad_batch("stratum must be int64 [" + std::to_string(rows) + "]");
  if (!batch.stratum.is_cpu()) return;
  const auto strata = batch.stratum.contiguous();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t stratum = strata.const_data_ptr<int64_t>()[i];
    if (stratum >= 0 && stratum < setup.strata) continue;
    bad_batch("stratum " + std::to_string(stratum) + " is out of range [0, " + std::to_string(setup.strata) +
              "); Setup::strata says how many there are");
  }
}

at::Tensor Sieve::Impl::device_ids(const Batch& batch, int64_t limit) const {
  const int64_t rows = batch.prediction.size(0);
  if (!batch.sample_id.defined() || batch.sample_id.dim() != 1 || batch.sample_id.size(0) != rows ||
      batch.sample_id.scalar_type() != at::kLong || !batch.sample_id.is_cpu()) {
    bad_batch("sample_id must be int64 [" + std::to_string(rows) + "] on the CPU");
  }
  const at::Tensor ids = batch.sample_id.contiguous();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t id = ids.const_data_ptr<int64_t>()[i];
    if (id < 0 || id >= limit) {
      bad_batch("sample id " + std::to_string(id) + " is out of range [0, " + std::to_string(limit) + ")");
    }
  }
  return to_device(ids, setup.device);
}

Sieve::Impl::Judged Sieve::Impl::judged(const Batch& batch, const at::Tensor& ids, const Past& past, int64_t step,
                                        Asking& asking) const {
  const at::NoGradGuard no_grad;
  const auto choose = [&](const RawScores& free, const at::Tensor& eligible) {
    return judge.rows_to_probe(past, free, eligible, step);
  };
  RawScores scores = signals.measure(batch, choose, asking.done);
  scores.likeness = past.likeness;
  const Verdicts verdicts = judge.judge(past, scores, step);
  return {record_lines(ids, scores, verdicts, shape), verdicts.weight};
}

void Sieve::Impl::fail(const std::exception_ptr& error, const std::string& where) {
  record.fail(where + one_line(error));
  reporter.blame(error);
}

int64_t Sieve::Impl::rows_to_ask(const Batch& batch, int64_t most, bool held_out, int64_t step) const {
  const bool any = batch.prediction.defined() && batch.prediction.dim() > 0;
  const int64_t rows = any ? batch.prediction.size(0) : 0;
  return judge.probe_count(rows > 0 && rows < most ? rows : most, held_out, step);
}

void Sieve::Impl::fail_asking(const Batch& batch, const Asking& asking, const std::string& where) {
  fail(std::current_exception(), where);
  if (asking.rows > 0) signals.ask_rest(batch, asking.rows, asking.done);
}

void Sieve::Impl::carry_losses() {
  for (int64_t m = 0; m < shape.micro_batches; ++m) {
    const auto loss = std::exchange(seen[m], nullptr);
    if (!loss) continue;
    if (loss->error) fail(loss->error);
    if (loss->nonfinite.defined()) record.mark_nonfinite(m, loss->nonfinite);
  }
}

void Sieve::Impl::carry_gradients(at::TensorList gradients) {
  try {
    std::vector<at::Tensor> there;
    for (const auto& gradient : gradients) {
      if (gradient.defined() && gradient.numel() > 0) there.push_back(gradient);
    }
    if (there.empty()) return;
    // The largest absolute value: unlike a sum of squares it is finite for all finite gradients.
    auto largest = at::_foreach_norm(there, std::numeric_limits<double>::infinity());
    for (auto& one : largest) one = to_device(one, setup.device);  // a model may lie on several devices
    const auto all = at::stack(largest);
    record.mark_gradient(at::isfinite(all).all().logical_not());
  } catch (...) {
    fail(std::current_exception(), "gradients: ");
  }
}

/// Rank 0 alone writes the ledger: what goes wrong there is for all ranks to know.
void Sieve::Impl::carry_ledger_errors() {
  try {
    if (const auto error = reporter.take_write_error()) std::rethrow_exception(error);
    if (reporter.wants_ledger() && !reporter.ledger_is_open()) reporter.open_ledger(-1);
  } catch (...) {
    fail(std::current_exception());
  }
}

Plan Sieve::inspect(const Batch& batch, const Clock& clock) {
  auto& s = *impl_;
  Plan plan;
  plan.rows_per_micro_batch_ = s.shape.rows;
  plan.micro_batches_ = s.shape.micro_batches;
  plan.seen_ = std::make_shared<Plan::Seen>();
  s.likeness_given |= batch.likeness.defined();
  Impl::Asking asking;
  try {
    if (s.micro >= s.shape.micro_batches) {
      bad_batch("inspect called more than micro_batches = " + std::to_string(s.shape.micro_batches) +
                " times before end_step");
    }
    asking.rows = s.rows_to_ask(batch, s.shape.rows, false, clock.step);
    s.check_batch(batch, s.shape.rows);
    const auto ids = s.device_ids(batch, s.setup.dataset_size);
    const auto judged = s.judged(batch, ids, s.judge.recall(ids, s.signals.likeness(batch)), clock.step, asking);
    s.record.put_training(s.micro, judged.lines);
    s.seen[s.micro] = plan.seen_;
    plan.weight_ = judged.weight;
  } catch (...) {
    s.fail_asking(batch, asking);
    if (batch.prediction.defined() && batch.prediction.dim() > 0) {
      plan.weight_ = at::ones({batch.prediction.size(0)}, at::device(s.setup.device).dtype(at::kFloat));
    }
  }
  ++s.micro;
  return plan;
}

at::Tensor Plan::loss(const at::Tensor& per_sample_loss) const {
  const at::Tensor loss = undivided_loss(per_sample_loss);
  return micro_batches_ == 1 || seen_->error ? loss : loss / static_cast<double>(micro_batches_);
}

at::Tensor Plan::undivided_loss(const at::Tensor& per_sample_loss) const try {
  if (!per_sample_loss.defined()) bad_batch("the per-sample loss is missing");
  // Without a weight the batch was beyond use, which end_step says on all ranks: until then go on.
  const at::Tensor weight = weight_.defined() ? weight_ : at::ones_like(per_sample_loss);
  if (per_sample_loss.dim() != 1 || per_sample_loss.sizes() != weight.sizes())
    bad_batch("the per-sample loss must have the shape [" + std::to_string(weight.numel()) + "], one value a row");
  const at::Tensor nonfinite = at::isfinite(per_sample_loss.detach()).logical_not();
  auto loss = (weight.to(per_sample_loss.scalar_type()) * per_sample_loss).mean();
  const int64_t rows = weight.size(0);
  // A short micro-batch counts by its rows; a full one takes the plain loop's arithmetic, bit for bit.
  if (rows != rows_per_micro_batch_)
    loss = loss * (static_cast<double>(rows) / static_cast<double>(rows_per_micro_batch_));
  // A loop may ask for several losses of one plan.
  seen_->nonfinite = seen_->nonfinite.defined() ? seen_->nonfinite | nonfinite : nonfinite;
  return loss;
} catch (...) {
  seen_->error = std::current_exception();
  // The peers wait in backward for this rank's gradients; the update will be skipped.
  return per_sample_loss.defined() ? per_sample_loss.sum() : at::zeros({}).requires_grad_();
}

std::vector<HeldOutVisit> Sieve::held_out_visits(int64_t step) const {
  const auto& s = *impl_;
  const auto& held_out = s.judge.options().held_out;
  if (!held_out.observes(step)) return {};
  return plan_held_out(step / held_out.every, held_out.rows, s.setup.held_out_size, s.judge.pseudo_rows(),
                       s.communicator->rank(), s.shape.held_out);
}

int64_t Sieve::Impl::own_held_out() const {
  const int64_t before = communicator->rank() * shape.held_out;
  return std::clamp<int64_t>(judge.options().held_out.rows - before, 0, shape.held_out);
}

void Sieve::observe(const Batch& batch, const Clock& clock) {
  auto& s = *impl_;
  Impl::Asking asking;
  try {
    if (!s.judge.options().held_out.observes(clock.step))
      bad_batch("step " + std::to_string(clock.step) + " observes no held-out rows");
    const int64_t left = s.shape.held_out - s.held_out_seen;
    asking.rows = s.rows_to_ask(batch, left, true, clock.step);
    const int64_t rows = s.check_batch(batch, left);
    const auto ids = s.device_ids(batch, s.judge.pseudo_rows());
    const int64_t kept = std::clamp<int64_t>(s.own_held_out() - s.held_out_seen, 0, rows);
    const auto judged =
        s.judged(counting(batch, kept, s.setup.device), ids, s.judge.recall_held_out(ids), clock.step, asking);
    s.record.put_held_out(s.held_out_seen, judged.lines.slice(0, 0, kept));
    s.held_out_seen += rows;
  } catch (...) {
    s.fail_asking(batch, asking, "held-out: ");
  }
}

void Sieve::fail(const std::exception_ptr& error) {
  impl_->fail(error);
}

StepEnd Sieve::end_step(const Clock& clock, at::TensorList gradients) {
  auto& s = *impl_;
  const at::NoGradGuard no_grad;
  if (s.judge.options().reference.is_on() && !s.reference_known)
    s.record.fail("reference.kind is start_model, but finish_reference() was not called");
  s.carry_losses();
  s.carry_gradients(gradients);
  s.carry_ledger_errors();
  s.end_looks(clock.step);
  s.record.set_step(clock.step);
  if (s.judge.options().evidence.discounts()) s.record.set_drift(s.judge.drift());
  const auto all = s.communicator->all_gather(s.record.flat());
  s.record.clear();
  s.inspected |= s.micro > 0;
  s.micro = s.held_out_seen = 0;
  const Gathered gathered = split(all, s.shape);
  s.judge.fold(gathered, clock.step);

  const auto& lines = gathered.training;
  const auto weight = (lines.select(1, RecordShape::weight) * lines.select(1, RecordShape::present)).sum();
  const auto nonfinite = (lines.select(1, RecordShape::nonfinite).sum() + gathered.bad_gradient.sum()) > 0;
  // The host learns of an error later: until then no update may follow it.
  s.halted.logical_or_(gathered.failed.sum() > 0).logical_or_((gathered.step != gathered.step[0]).any());
  if (s.options.fail_on_nonfinite)
    s.halted.logical_or_(nonfinite)
        .logical_or_(gathered.held_out.select(1, RecordShape::nonfinite).sum() > 0)
        .logical_or_(gathered.looks.select(1, RecordShape::nonfinite).sum() > 0);
  const auto skip = (weight == 0) | nonfinite | s.halted;
  const auto expected = static_cast<double>(s.ranks * s.shape.training_lines());
  StepEnd end{at::where(skip, at::ones_like(weight), weight / expected).to(at::kFloat), skip.to(at::kFloat),
              nonfinite.to(at::kFloat)};
  s.reporter.push(clock, all, std::exchange(s.passed_over, {}));
  s.reporter.catch_up(false);
  return end;
}

std::vector<StepReport> Sieve::take_reports() {
  return impl_->reporter.take();
}

void Sieve::flush() {
  impl_->reporter.catch_up(true);
  impl_->reporter.write_out();
}

std::map<std::string, at::Tensor> Sieve::state() const {
  std::map<std::string, at::Tensor> state;
  for (const auto& [name, tensor] : impl_->judge.state()) state[name] = tensor->to(at::kCPU).contiguous().clone();
  const std::string names = impl_->reporter.channel_names();
  state["filters"] = at::tensor(std::vector<uint8_t>(names.begin(), names.end()), at::kByte);
  state["ledger_rows"] = at::full({}, impl_->reporter.ledger_rows(), at::kLong);
  state["reference_known"] = at::full({}, impl_->reference_known ? 1 : 0, at::kLong);
  for (auto& [name, tensor] : impl_->flags.state()) state[name] = std::move(tensor);
  return state;
}

void Sieve::restore(const std::map<std::string, at::Tensor>& state) {
  auto& s = *impl_;
  const auto find = [&](const std::string& name) {
    const auto it = state.find(name);
    if (it == state.end())
      throw DataError("sieve state: '" + name + "' is missing; the checkpoint is torn or from another version");
    return it->second;
  };
  if (s.reporter.has_begun() || s.reporter.ledger_is_open())
    throw DataError("sieve state: restore() comes before the first step; build a new sieve and restore that one");
  const at::Tensor filters = find("filters").to(at::kByte).contiguous();
  const std::string names(reinterpret_cast<const char*>(filters.const_data_ptr<uint8_t>()),
                          static_cast<size_t>(filters.numel()));
  if (names != s.reporter.channel_names())
    throw DataError("sieve state: belongs to the filters " + names + ", but this configuration has " +
                    s.reporter.channel_names() + "; resume with the configuration that the checkpoint was made with");
  for (const auto& [name, tensor] : s.judge.state()) {
    const auto saved = find(name);
    if (saved.sizes() != tensor->sizes() || saved.scalar_type() != tensor->scalar_type()) {
      throw DataError("sieve state: '" + name +
                      "' has another shape or dtype than this configuration needs; resume with the configuration that "
                      "the checkpoint was made with");
    }
  }
  for (const auto& [name, tensor] : s.judge.state()) tensor->copy_(find(name));
  s.flags.restore(state);
  s.reference_known = find("reference_known").item<int64_t>() != 0;
  const int64_t rows = find("ledger_rows").item<int64_t>();
  s.reporter.set_ledger_rows(rows);
  s.reporter.open_ledger(rows);
  s.judge.restored();
}

}  // namespace memsieve
