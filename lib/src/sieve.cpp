#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <memsieve/error.h>
#include <memsieve/plugin.h>
#include <memsieve/sieve.h>

#include <optional>

#include "engine.h"
#include "fingerprint.h"
#include "held_out.h"
#include "reporter.h"

namespace memsieve {

struct Sieve::Impl {
  Impl(const Settings& settings, std::shared_ptr<Communicator> comm, const Setup& given)
      : setup(given),
        communicator(std::move(comm)),
        options(read_options(settings, given)),
        ranks(communicator->size()),
        shape{static_cast<int64_t>(options.channels.size()), given.micro_batches, given.rows_per_micro_batch,
              (options.held_out_rows + ranks - 1) / ranks},
        engine(options, setup, ranks),
        record(shape, given.device),
        reporter(options, given, shape, communicator->rank() == 0, settings.yaml()),
        nonfinite(given.micro_batches) {}

  Setup setup;
  std::shared_ptr<Communicator> communicator;
  SieveOptions options;
  int64_t ranks;
  RecordShape shape;
  Engine engine;
  RecordBuilder record;
  Reporter reporter;
  int64_t micro = 0, held_out_seen = 0;
  std::vector<std::shared_ptr<at::Tensor>> nonfinite;  ///< of each micro-batch's per-sample loss
  std::vector<at::Tensor> draws;  ///< lines of the reference pass: picture, held out, timestep, raw...
  bool reference_known = false;

  int64_t check_batch(const Batch& batch, bool held_out) const;
  at::Tensor device_ids(const Batch& batch, bool held_out) const;
};

namespace {

void check_setup(const Setup& setup) {
  const auto positive = [](int64_t value, const char* name) {
    if (value < 1)
      throw ConfigError(std::string("Setup::") + name + ": is " + std::to_string(value) +
                        ", must be at least 1");
  };
  positive(setup.dataset_size, "dataset_size");
  positive(setup.rows_per_micro_batch, "rows_per_micro_batch");
  positive(setup.micro_batches, "micro_batches");
  positive(setup.num_timesteps, "num_timesteps");
  if (!setup.group_id.empty() && static_cast<int64_t>(setup.group_id.size()) != setup.dataset_size) {
    throw ConfigError("Setup::group_id: has " + std::to_string(setup.group_id.size()) + " entries for " +
                      std::to_string(setup.dataset_size) + " samples");
  }
}

[[noreturn]] void bad_batch(const std::string& what) {
  throw DataError("batch: " + what);
}

}  // namespace

Schema Sieve::schema(const FilterRegistry& filters) {
  return sieve_schema(filters);
}

namespace {

struct Prepared {
  Settings settings;
  Setup setup;
};

/// COLLECTIVE. What `prepare` made of this rank's files, once all ranks have agreed on it. An error of
/// `prepare` reaches the other ranks too, so that none waits for one that cannot start.
template <typename Prepare>
Prepared agreed(Communicator& communicator, at::Device device, Prepare prepare) {
  std::optional<Prepared> mine;
  std::exception_ptr error;
  Fingerprint print;
  try {
    mine = prepare();
    check_setup(mine->setup);
    print = fingerprint(mine->settings, mine->setup);
  } catch (const std::exception& failure) {
    error = std::current_exception();
    print.error = failure.what();
  }
  require_agreement(communicator, print, device);
  if (error) std::rethrow_exception(error);
  return *mine;
}

Prepared parse(const std::string& yaml, const std::string& source, const Setup& given) {
  Setup own = given;
  for (const auto& path : peek_texts(yaml, source, "sieve.plugins", given.overrides))
    load_plugin(path, own.filters);
  Schema root;
  root.section("sieve", sieve_schema(own.filters), "the sieve");
  return {resolve(yaml, source, root, given.overrides).section("sieve"), own};
}

}  // namespace

Sieve Sieve::from_settings(const Settings& settings, std::shared_ptr<Communicator> communicator,
                           const Setup& setup) {
  const Prepared p = agreed(*communicator, setup.device, [&] { return Prepared{settings, setup}; });
  return Sieve(std::make_unique<Impl>(p.settings, std::move(communicator), p.setup));
}

Sieve Sieve::from_text(const std::string& yaml, const std::string& source,
                       std::shared_ptr<Communicator> communicator, const Setup& setup) {
  const Prepared p = agreed(*communicator, setup.device, [&] { return parse(yaml, source, setup); });
  return Sieve(std::make_unique<Impl>(p.settings, std::move(communicator), p.setup));
}

Sieve Sieve::from_yaml(const std::string& path, std::shared_ptr<Communicator> communicator,
                       const Setup& setup) {
  const Prepared p =
      agreed(*communicator, setup.device, [&] { return parse(read_text_file(path), path, setup); });
  return Sieve(std::make_unique<Impl>(p.settings, std::move(communicator), p.setup));
}

Sieve::Sieve(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Sieve::Sieve(Sieve&&) noexcept = default;
Sieve& Sieve::operator=(Sieve&&) noexcept = default;
Sieve::~Sieve() = default;

int64_t Sieve::Impl::check_batch(const Batch& batch, bool held_out) const {
  if (!batch.prediction.defined() || batch.prediction.dim() < 2) bad_batch("prediction must be [B, C, ...]");
  const int64_t rows = batch.prediction.size(0),
                most = held_out ? shape.held_out - held_out_seen : shape.rows;
  if (rows < 1 || rows > most) {
    bad_batch(std::to_string(rows) + " rows, but this call takes 1 to " + std::to_string(most));
  }
  if (!batch.target.defined() || batch.target.sizes() != batch.prediction.sizes())
    bad_batch("target has another shape than prediction");
  if (!batch.timestep.defined() || batch.timestep.numel() != rows)
    bad_batch("timestep must have " + std::to_string(rows) + " entries");
  if (batch.has_caption.defined() && batch.has_caption.numel() != rows)
    bad_batch("has_caption must have " + std::to_string(rows) + " entries");
  return rows;
}

at::Tensor Sieve::Impl::device_ids(const Batch& batch, bool held_out) const {
  const at::Tensor& ids = batch.sample_id;
  const int64_t rows = batch.prediction.size(0), limit = held_out ? engine.pseudo_rows() : setup.dataset_size;
  if (!ids.defined() || ids.numel() != rows || ids.scalar_type() != at::kLong || !ids.device().is_cpu()) {
    bad_batch("sample_id must be int64 [" + std::to_string(rows) + "] on the CPU");
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t id = ids.data_ptr<int64_t>()[i];
    if (id < 0 || id >= limit) {
      bad_batch("sample id " + std::to_string(id) + " is out of range [0, " + std::to_string(limit) + ")");
    }
  }
  // From memory that is not pinned a copy may wait for the device.
  return setup.device.is_cpu() ? ids : ids.pin_memory().to(setup.device, /*non_blocking=*/true);
}

Plan Sieve::inspect(const Batch& batch, const Clock& clock) {
  auto& s = *impl_;
  Plan plan;
  plan.rows_per_micro_batch_ = s.shape.rows;
  plan.micro_batches_ = s.shape.micro_batches;
  plan.nonfinite_ = std::make_shared<at::Tensor>();
  try {
    if (s.micro >= s.shape.micro_batches) {
      bad_batch("inspect called more than micro_batches = " + std::to_string(s.shape.micro_batches) +
                " times before end_step");
    }
    s.check_batch(batch, false);
    const auto measured = s.engine.measure(batch, s.device_ids(batch, false), false, clock.step);
    s.record.put_training(s.micro, measured.lines);
    s.nonfinite[s.micro] = plan.nonfinite_;
    plan.weight_ = measured.weight;
  } catch (const std::exception& error) {
    s.record.fail(error.what());
    if (batch.prediction.defined() && batch.prediction.dim() > 0) {
      plan.weight_ = at::ones({batch.prediction.size(0)}, at::device(s.setup.device).dtype(at::kFloat));
    }
  }
  ++s.micro;
  return plan;
}

at::Tensor Plan::loss(const at::Tensor& per_sample_loss) const {
  *nonfinite_ = at::isfinite(per_sample_loss.detach()).logical_not();
  if (!weight_.defined() || per_sample_loss.sizes() != weight_.sizes()) {
    throw DataError("per-sample loss must have the shape of the batch, one value a row");
  }
  auto loss = (weight_.to(per_sample_loss.scalar_type()) * per_sample_loss).mean();
  const int64_t rows = weight_.size(0);
  // A short micro-batch counts by its rows; a full one takes the plain loop's arithmetic, bit for bit.
  if (rows != rows_per_micro_batch_)
    loss = loss * (static_cast<double>(rows) / static_cast<double>(rows_per_micro_batch_));
  return micro_batches_ == 1 ? loss : loss / static_cast<double>(micro_batches_);
}

std::vector<HeldOutVisit> Sieve::held_out_visits(int64_t step) const {
  const auto& s = *impl_;
  if (step % s.options.held_out_every != 0) return {};
  return plan_held_out(step / s.options.held_out_every, s.options.held_out_rows, s.setup.held_out_size,
                       s.engine.pseudo_rows(), s.communicator->rank(), s.shape.held_out);
}

void Sieve::observe(const Batch& batch, const Clock& clock) {
  auto& s = *impl_;
  try {
    const int64_t rows = s.check_batch(batch, true);
    s.record.put_held_out(s.held_out_seen,
                          s.engine.measure(batch, s.device_ids(batch, true), true, clock.step).lines);
    s.held_out_seen += rows;
  } catch (const std::exception& error) {
    s.record.fail(std::string("held-out: ") + error.what());
  }
}

int64_t Sieve::reference_draws() const {
  return impl_->options.draws;
}
bool Sieve::has_reference() const {
  return impl_->reference_known;
}

void Sieve::reference(const Batch& batch, bool held_out) {
  auto& s = *impl_;
  try {
    const int64_t rows = batch.prediction.size(0),
                  limit = held_out ? s.setup.held_out_size : s.setup.dataset_size;
    if (batch.sample_id.numel() != rows || batch.sample_id.min().item<int64_t>() < 0 ||
        batch.sample_id.max().item<int64_t>() >= limit) {
      bad_batch("reference: sample ids must lie in [0, " + std::to_string(limit) + ")");
    }
    const RawScores scores = s.engine.score_all(batch);
    if (scores.nonfinite.any().item<bool>()) bad_batch("reference: the starting model gives NaN or Inf");
    const auto picture = (batch.sample_id + (held_out ? s.setup.dataset_size : 0)).to(s.setup.device);
    const auto column = [](const at::Tensor& t) { return t.to(at::kDouble).unsqueeze(1); };
    s.draws.push_back(at::cat({column(picture), column(at::full_like(picture, held_out ? 1 : 0)),
                               column(scores.timestep), scores.raw.to(at::kDouble)},
                              1));
  } catch (const std::exception& error) {
    s.record.fail(error.what());
  }
}

void Sieve::finish_reference() {
  auto& s = *impl_;
  if (!s.options.reference) return;
  const auto real = at::device(s.setup.device).dtype(at::kDouble);
  const int64_t width = 3 + s.shape.channels;
  const auto mine = s.draws.empty() ? at::empty({0, width}, real) : at::cat(s.draws);
  s.draws.clear();
  // Before training the host may wait: the sizes are gathered first, then lines padded to the longest rank's.
  auto head = s.record.flat().slice(0, 0, RecordShape::kHeader + RecordShape::kMessage).clone();
  head[2] = static_cast<double>(mine.size(0));
  const auto heads = s.communicator->all_gather(head).to(at::kCPU);
  s.record.clear();
  const std::string error = first_error(heads);
  if (!error.empty()) throw PeerError("reference pass: " + error);
  const auto longest = static_cast<int64_t>(heads.select(1, 2).max().item<double>());
  if (longest == 0)
    throw DataError("reference pass: no draws; call reference() for every sample before finish_reference()");
  const auto padded = at::constant_pad_nd(mine, {0, 0, 0, longest - mine.size(0)}, -1).reshape({-1});
  auto all = s.communicator->all_gather(padded).reshape({-1, width});
  all = all.index_select(0, at::nonzero(all.select(1, 0) >= 0).squeeze(1));
  // By picture and timestep, so that the result does not depend on how the ranks divided the work.
  all = all.index_select(
      0, at::argsort(all.select(1, 0) * static_cast<double>(s.setup.num_timesteps) + all.select(1, 2), true,
                     0, false));
  s.engine.set_reference(all.select(1, 0).to(at::kLong), all.select(1, 2).to(at::kFloat),
                         all.slice(1, 3).to(at::kFloat), all.select(1, 1) > 0);
  s.reference_known = true;
}

StepEnd Sieve::end_step(const Clock& clock) {
  auto& s = *impl_;
  const at::NoGradGuard no_grad;
  if (s.options.reference && !s.reference_known)
    s.record.fail("reference.kind is start_model, but finish_reference() was not called");
  for (int64_t m = 0; m < s.shape.micro_batches; ++m) {
    if (s.nonfinite[m] && s.nonfinite[m]->defined()) s.record.mark_nonfinite(m, *s.nonfinite[m]);
    s.nonfinite[m].reset();
  }
  if (s.reporter.wants_ledger() && !s.reporter.ledger_is_open()) {
    try {
      s.reporter.open_ledger(-1);
    } catch (const std::exception& error) {
      s.record.fail(error.what());
    }
  }
  const auto all = s.communicator->all_gather(s.record.flat());
  s.record.clear();
  s.micro = s.held_out_seen = 0;
  const Gathered gathered = split(all, s.shape);
  s.engine.fold(gathered);

  const auto& lines = gathered.training;
  const auto weight = (lines.select(1, RecordShape::weight) * lines.select(1, RecordShape::present)).sum();
  const auto broken = (gathered.failed.sum() + lines.select(1, RecordShape::nonfinite).sum() +
                       gathered.held_out.select(1, RecordShape::nonfinite).sum()) > 0;
  const auto skip = (weight == 0) | broken;
  const auto expected = static_cast<double>(s.ranks * s.shape.training_lines());
  StepEnd end{at::where(skip, at::ones_like(weight), weight / expected).to(at::kFloat), skip.to(at::kFloat)};
  s.reporter.push(clock, all);
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
  for (const auto& [name, tensor] : impl_->engine.state())
    state[name] = tensor->to(at::kCPU).contiguous().clone();
  state["ledger_rows"] = at::full({}, impl_->reporter.ledger_rows(), at::kLong);
  state["reference_known"] = at::full({}, impl_->reference_known ? 1 : 0, at::kLong);
  return state;
}

void Sieve::restore(const std::map<std::string, at::Tensor>& state) {
  auto& s = *impl_;
  const auto find = [&](const std::string& name) {
    const auto it = state.find(name);
    if (it == state.end())
      throw DataError("sieve state: '" + name +
                      "' is missing; the checkpoint is torn or from another version");
    return it->second;
  };
  for (const auto& [name, tensor] : s.engine.state()) {
    const auto saved = find(name);
    if (saved.sizes() != tensor->sizes() || saved.scalar_type() != tensor->scalar_type()) {
      throw DataError("sieve state: '" + name +
                      "' has another shape or dtype than this configuration needs; resume with the "
                      "configuration that the checkpoint was made with");
    }
  }
  for (const auto& [name, tensor] : s.engine.state()) tensor->copy_(find(name));
  s.reference_known = find("reference_known").item<int64_t>() != 0;
  const int64_t rows = find("ledger_rows").item<int64_t>();
  s.reporter.set_ledger_rows(rows);
  s.reporter.open_ledger(rows);
  s.engine.restored();
}

std::vector<std::string> Sieve::channels() const {
  std::vector<std::string> names;
  for (const auto& channel : impl_->options.channels) names.push_back(channel.name);
  return names;
}

}  // namespace memsieve
