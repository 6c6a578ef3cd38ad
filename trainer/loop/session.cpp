#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <trainer/loop/evaluate.h>
#include <trainer/loop/session.h>

#include <iomanip>
#include <sstream>

namespace memsieve::trainer {

namespace {

/// A rank whose file differs from rank 0's would train something else: say so on every rank.
void require_same_config(const TrainConfig& config, Group& group) {
  const std::string first = group.broadcast(config.settings.yaml());
  on_all_ranks(group, [&] {
    const auto difference = config.settings.difference_from(first, "rank 0's configuration", Keys::all);
    if (!difference) return;
    throw ConfigError(config.source + ": differs from rank 0's configuration: " + difference->line() +
                      "; give all ranks the same file");
  });
}

int64_t count(const std::vector<at::Tensor>& parameters) {
  int64_t sum = 0;
  for (const auto& p : parameters) sum += p.numel();
  return sum;
}

std::string parameter_counts(Model& model) {
  const std::string trained = std::to_string(count(model.parameter_list()));
  const Lora* lora = model.lora();
  if (lora == nullptr) return trained + " parameters";
  return trained + " trained parameters (LoRA of rank " + std::to_string(lora->config().rank) + " on " +
         std::to_string(lora->layers()) + " layers) beside " +
         std::to_string(count(model.denoiser().module().parameters())) + " frozen ones";
}

}  // namespace

Session::Session(const TrainConfig& config, Group& group, bool dry)
    : config_(config), group_(group), dry_(dry), folder_(config.output_dir) {
  require_same_config(config_, group_);
  start_ = choose_start(folder_, lock_, config_.settings,
                        {.resume_from = config_.resume_from, .source = config_.source, .dry = dry_}, group_);
  on_all_ranks(group_, [&] {
    if (group_.rank() == 0 && !finished()) folder_.check(config_.settings.where("output_dir"));
  });
  on_all_ranks(group_, [&] { open_data(); });
  build_trainee();
  build_sieve();
  build_starting_model();
  if (finished()) return;
  if (start_.saved) on_all_ranks(group_, [&] { restore(); });
  if (!dry_) on_all_ranks(group_, [&] { start_writing(); });
}

bool Session::finished() const {
  return start_.first_step() >= config_.max_train_steps && start_.finished_steps >= config_.max_train_steps;
}

void Session::open_data() {
  data_.emplace(RunDataOptions{.train = config_.train_data,
                               .held_out = config_.held_out_data,
                               .validation = config_.validation_data,
                               .prompts = config_.prompts_data,
                               .forget = config_.forget ? config_.forget->data : "",
                               .cache_bytes = config_.cache_mb << 20,
                               .random_flip = config_.diffusion.noise.random_flip,
                               .schedule = config_.diffusion.schedule},
                group_.device());
  if (config_.draw.every > 0) {
    const VaeKeys keys{.vae = config_.settings.where("sampling.vae"),
                       .asked = config_.settings.where("sampling.every")};
    pictures_.emplace(config_.draw.vae, *data_->prompts, group_.device(), keys);
  }
  sampler_.emplace(data_->training->data().size(), group_.world_size(), config_.train_batch_size, config_.accumulation,
                   config_.seed);
  require_same_rows(start_, data_->identity, sampler_->global_batch_size(), config_.settings.where("data.train"));
}

ModelSource Session::model_source() const {
  return {
      .pretrained = config_.model_pretrained,
      .config = config_.model_config,
      .seed = config_.seed,
      .gradient_checkpointing = config_.gradient_checkpointing,
      .lora = config_.lora,
      .lora_pretrained = config_.lora_pretrained,
      .lora_where = config_.settings.where("lora"),
      .model = {
          .device = group_.device(), .autocast = config_.autocast, .first_timestep = data_->schedule.first_timestep()}};
}

Model Session::checked_model() {
  Model model = make_model(model_source(), start_.checkpoint, group_);
  on_all_ranks(group_, [&] {
    if (config_.lora)
      require_same_base(model.base_fingerprint(), "the adapters of " + start_.checkpoint + " were trained on");
    const Dataset& data = data_->training->data();
    model.denoiser().check_takes(row_shape(data), data.path());
  });
  return model;
}

void Session::require_same_base(const std::string& fingerprint, const std::string& what) const {
  if (!start_.saved || start_.saved->base == fingerprint) return;
  throw ConfigError(config_.settings.where(config_.model_pretrained.empty() ? "model.config" : "model.pretrained") +
                    ": is not the UNet that " + what + "; name that one");
}

void Session::build_trainee() {
  TraineeOptions options{.optimizer = config_.optimizer,
                         .max_train_steps = config_.max_train_steps,
                         .ema_decay = std::nullopt,
                         .loss_scale = std::nullopt,
                         .bucket_mb = config_.bucket_mb};
  if (config_.use_ema) options.ema_decay = config_.ema_decay;
  if (config_.autocast == at::kHalf) options.loss_scale = config_.loss_scale;
  trainee_.emplace(checked_model(), options, group_);
  const auto& shape = data_->training->data().latent_shape();
  const auto real = at::TensorOptions(at::kFloat).device(group_.device());
  trainee_->settle_buckets(at::zeros({1, shape[0], shape[1], shape[2]}, real), data_->training->nothing(1));
}

Setup Session::sieve_setup(const std::string& ledger) const {
  Setup setup;
  setup.filters = config_.filters;
  setup.dataset_size = data_->training->data().size();
  setup.rows_per_micro_batch = config_.train_batch_size;
  setup.micro_batches = config_.accumulation;
  setup.num_timesteps = data_->schedule.num_timesteps();
  setup.held_out_size = data_->held_out ? data_->held_out->data().size() : 0;
  setup.group_id = data_->training->data().group_ids();
  setup.device = group_.device();
  setup.run_id = start_.run_id;
  setup.ledger_path = ledger;
  return setup;
}

void Session::build_sieve() {
  if (!config_.sieve) return;
  const Setup setup = sieve_setup(dry_ ? "" : folder_.file("ledger.h5"));
  sieve_.emplace(Sieve::from_settings(config_.settings.section("sieve"), group_.communicator(), setup));
}

void Session::build_starting_model() {
  if (!sieve_) return;
  bool wanted = false;
  for (const auto& name : sieve_->counterfactuals()) {
    if (name == "start") {
      wanted = true;
    } else if (name != "null") {
      throw ConfigError(config_.settings.where("sieve.filters") + ": a filter reads the counterfactual prediction '" +
                        name + "', which this trainer does not make (it makes null and start); a loop of your own can");
    }
  }
  if (!wanted) return;
  if (config_.lora) {
    starting_model_.emplace(trainee_->model());
    return;
  }
  starting_model_.emplace(std::make_unique<Model>(make_starting_model(model_source(), group_)));
  on_all_ranks(group_, [&] {
    require_same_base(starting_model_->fingerprint(),
                      "the run of " + start_.checkpoint + " started from and its sieve compares with");
  });
}

StepOptions Session::step_options() const {
  const Settings& s = config_.settings;
  const auto every = [&](const std::string& section) {
    const bool on = config_.sieve && s.integer("sieve." + section + ".rows") > 0;
    return on ? s.integer("sieve." + section + ".every") : 0;
  };
  const int64_t first = start_.first_step();
  return {.seed = config_.seed,
          .noise = config_.diffusion.noise,
          .snr_gamma = config_.diffusion.snr_gamma,
          .proportion_empty_prompts = config_.proportion_empty_prompts,
          .train_batch_size = config_.train_batch_size,
          .accumulation = config_.accumulation,
          .max_train_steps = config_.max_train_steps,
          .prefetch = config_.prefetch,
          .forget_share = config_.forget ? config_.forget->share : 0,
          .held_out_every = every("held_out"),
          .revisit_every = every("revisit"),
          .pass_over = passes_over(),
          .first_step = first,
          .stream_position = start_.saved ? start_.saved->stream_position : 0};
}

bool Session::passes_over() const {
  return config_.sieve && config_.settings.boolean("sieve.action.pass_over");
}

bool Session::needs_reference() const {
  return sieve_ && sieve_->reference_draws() > 0 && !sieve_->has_reference();
}

bool Session::make_reference() {
  const ReferenceOptions options{
      .seed = config_.seed,
      .noise = config_.diffusion.noise,
      .batch_size = rows_without_gradient(config_.train_batch_size, config_.gradient_checkpointing)};
  const auto spare = [&] {
    return Sieve::from_settings(config_.settings.section("sieve"), std::make_shared<SoloComm>(), sieve_setup(""));
  };
  const RowMaker* held_out = data_->held_out ? &*data_->held_out : nullptr;
  return reference_pass(*sieve_, trainee_->model(), *data_->training, held_out, group_, options, spare);
}

void Session::restore() {
  trainee_->restore(start_.checkpoint);
  // Before the ledger is cut: checkpoints that count on the rows to come must not be "latest" if this attempt fails.
  if (!dry_ && group_.rank() == 0) {
    folder_.set_aside_damaged(start_.damaged);
    folder_.abandon_after(start_.first_step());
  }
  if (sieve_) sieve_->restore(load_safetensors(start_.checkpoint + "/sieve.safetensors"));
  if (start_.saved->world_size != group_.world_size()) {
    log_info("resuming a run of " + std::to_string(start_.saved->world_size) + " ranks on " +
             std::to_string(group_.world_size()) + ": the same up to the order of summation");
  }
}

void Session::claim_folder() {
  const std::string where = config_.settings.where("output_dir");
  folder_.make(where);
  if (lock_.held()) return;
  // There was no folder when the run chose its start. Another process may have seen none either.
  lock_.take(folder_.path(), where);
  if (!lock_.held()) throw DataError(folder_.file("run.lock") + ": cannot be made; check permissions and free space");
  if (!start_.saved) folder_.refuse_if_used(where);
}

void Session::start_writing() {
  const bool first = group_.rank() == 0;
  if (first) {
    claim_folder();
    if (start_.saved) folder_.trim_metrics(start_.first_step());
    folder_.tidy();
    folder_.write_run_files({.run_id = start_.run_id,
                             .world_size = group_.world_size(),
                             .device = group_.device().str(),
                             .config_yaml = config_.settings.yaml()});
  }
  MetricsOptions options;
  if (first) options.jsonl = folder_.file("metrics.jsonl");
  if (first && config_.tensorboard) options.events = folder_.file("tensorboard");
  options.first_step = start_.first_step();
  options.rows_per_step = sampler_->global_batch_size();
  if (sieve_) options.channels = sieve_->channels();
  options.passes_over = passes_over();
  options.forgets = config_.forget.has_value();
  options.drifts = config_.sieve && config_.settings.text("sieve.evidence.kind") == "discounted";
  metrics_.emplace(std::move(options));
}

void Session::save(int64_t step, int64_t nonfinite_in_a_row, int64_t stream_position) {
  on_all_ranks(group_, [&] {
    if (group_.rank() != 0) return;
    lock_.require_in_place();
    metrics_->flush();
    CheckpointState state;
    state.step = step;
    state.seed = config_.seed;
    state.world_size = group_.world_size();
    state.global_batch = sampler_->global_batch_size();
    state.nonfinite_in_a_row = nonfinite_in_a_row;
    state.stream_position = stream_position;
    state.run_id = start_.run_id;
    state.meaning = config_.settings.yaml(Keys::binding);
    state.base = starting_model_ ? starting_model_->fingerprint() : trainee_->model().base_fingerprint();
    state.data = data_->identity;
    CheckpointParts parts = trainee_->checkpoint_parts();
    parts.scheduler = scheduler_json(config_.diffusion.schedule, config_.diffusion.draw);
    if (sieve_) parts.sieve = sieve_->state();
    write_checkpoint(folder_.checkpoint(step), state, parts);
    lock_.require_in_place();
    folder_.rotate(config_.checkpoints_total_limit, step);
  });
}

void Session::check_folder() {
  const auto now = std::chrono::steady_clock::now();
  if (now - folder_checked_ < std::chrono::seconds(1)) return;
  folder_checked_ = now;
  lock_.require_in_place();
}

void Session::finish() {
  on_all_ranks(group_, [&] {
    if (group_.rank() == 0) folder_.finish(config_.max_train_steps);
  });
}

std::string Session::starting_model_memory() const {
  if (!starting_model_) return "";
  const double megabytes = static_cast<double>(starting_model_->bytes()) / double(1 << 20);
  if (megabytes == 0) return "; the starting model is the trained one without adapters";
  std::ostringstream text;
  text << "; a frozen copy of the starting model takes " << std::fixed << std::setprecision(1) << megabytes
       << " MiB on each rank";
  return text.str();
}

std::string Session::to_forget() const {
  if (!data_->forget) return "";
  const Dataset& data = data_->forget->data();
  return "; forgets " + std::to_string(data.size()) + " pictures of " + data.path();
}

std::string Session::describe() {
  const int64_t rows = sampler_->global_batch_size(), size = data_->training->data().size();
  return parameter_counts(trainee_->model()) + " on " + std::to_string(group_.world_size()) + " x " +
         group_.device().str() + "; " + std::to_string(size) + " samples of " + data_->training->data().path() + "; " +
         std::to_string(config_.max_train_steps) + " steps of " + std::to_string(rows) +
         " rows = " + std::to_string(config_.max_train_steps * rows / size) + " epochs; " +
         (sieve_                          ? "sieve on"
          : config_.settings.has("sieve") ? "sieve off (filter: off)"
                                          : "no sieve") +
         starting_model_memory() + to_forget();
}

}  // namespace memsieve::trainer
