#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <trainer/loop/session.h>

#include <boost/crc.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

namespace memsieve::trainer {

namespace {

/// A rank whose file differs from rank 0's would train something else: say so on every rank.
void require_same_config(const TrainConfig& config, Group& group) {
  const std::string mine = config.settings.yaml(), first = group.broadcast(mine);
  on_all_ranks(group, [&] {
    const std::string difference = first_difference(mine, first);
    if (difference.empty()) return;
    throw ConfigError(config.source + ": differs from rank 0's configuration: " + difference +
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
         std::to_string(lora->layers()) + " layers) beside " + std::to_string(count(model.unet()->parameters())) +
         " frozen ones";
}

std::string identity_of(const Dataset& data) {
  std::vector<int64_t> some;
  for (int64_t i = 0; i < 64; ++i) some.push_back(i * (data.size() - 1) / 63);
  boost::crc_32_type crc;
  for (const auto& caption : data.captions(some)) crc.process_bytes(caption.data(), caption.size() + 1);
  crc.process_bytes(data.group_ids().data(), data.group_ids().size() * sizeof(int64_t));
  std::ostringstream out;
  out << data.size() << " rows of " << at::IntArrayRef(data.latent_shape()) << ", captions " << std::hex
      << crc.checksum();
  return out.str();
}

/// The setting with which a new run starts from a checkpoint's weights.
std::string start_from(const std::string& checkpoint) {
  const std::string adapter = checkpoint + "/lora/" + lora_file_name;
  return std::filesystem::exists(adapter) ? "lora.pretrained=" + adapter : "model.pretrained=" + checkpoint + "/unet";
}

}  // namespace

Session::Session(const TrainConfig& given, Group& ranks, bool dry)
    : config(given),
      group(ranks),
      folder(given.output_dir),
      schedule(given.diffusion.schedule, ranks.device()),
      dry_(dry) {
  require_same_config(config, group);
  choose_start();
  on_all_ranks(group, [&] { open_data(); });
  build_model();
  build_sieve();
  if (finished()) return;
  if (saved_) on_all_ranks(group, [&] { restore(); });
  if (!dry_) on_all_ranks(group, [&] { start_writing(); });
}

void Session::clear_unsaved_run(const std::string& where) {
  const auto existing = folder.run_id();
  if (!existing) return folder.refuse_if_used(where);
  const std::string difference =
      first_difference(meaning_of(config.settings.yaml()), meaning_of(read_text_file(folder.file("config.yaml"))));
  if (!difference.empty()) {
    throw ConfigError(where + ": " + folder.path() + " holds run " + *existing +
                      ", which has no checkpoint and another configuration (now / then): " + difference +
                      "; choose another folder with --set output_dir=FOLDER");
  }
  if (dry_) return;
  log_warning(folder.path() + " holds run " + *existing + ", which ended before its first checkpoint; starting anew");
  folder.forget();
}

void Session::choose_start() {
  const bool resuming = !config.resume_from.empty();
  nlohmann::json decision;
  on_all_ranks(group, [&] {
    if (group.rank() != 0) return;
    const std::string where = config.settings.where(resuming ? "resume_from_checkpoint" : "output_dir");
    const auto existing = folder.run_id();
    std::string from = config.resume_from;
    if (!resuming) folder.refuse_if_used(where);
    const auto steps = folder.checkpoints();
    if ((from == "latest" || from == "auto") && !steps.empty()) {
      from = folder.checkpoint(steps.back());
    } else if (from == "latest") {
      throw DataError(where + ": " + folder.path() +
                      " holds no checkpoint to resume from; start a new run without --resume-from, or use "
                      "--resume-from auto, which does either");
    } else if (from == "auto") {
      clear_unsaved_run(where);
      from.clear();
    } else if (resuming) {
      const std::string owner = read_checkpoint_state(from).run_id;
      if (!existing || owner != *existing) {
        throw ConfigError(where + ": " + from + " belongs to run " + owner + ", but " + folder.path() +
                          " does not; set output_dir to that run's folder, or start a new run from its weights with " +
                          start_from(from));
      }
    }
    decision = {from, existing && !from.empty() ? *existing : make_run_id(), folder.finished_steps()};
  });
  decision = nlohmann::json::parse(group.broadcast(decision.dump()));
  checkpoint_ = decision[0];
  run_id_ = decision[1];
  finished_steps_ = decision[2];
}

void Session::open_data() {
  const DatasetOptions plain{.cache_bytes = config.cache_mb << 20};
  DatasetOptions trained = plain;
  trained.flips = config.diffusion.noise.random_flip;
  const auto open = [&](std::optional<RowMaker>& into, const std::string& path, const DatasetOptions& options) {
    if (!path.empty()) into.emplace(Dataset::open(path, options), schedule, group.device());
    if (into && training) training->data().check_matches(into->data());
  };
  open(training, config.train_data, trained);
  open(held_out, config.held_out_data, trained);
  open(validation, config.validation_data, plain);
  if (!config.prompts_data.empty()) {
    prompts = Dataset::open(config.prompts_data, plain);
    training->data().check_matches(*prompts);
  }
  data_identity_ = identity_of(training->data()) + (held_out ? "; held out: " + identity_of(held_out->data()) : "");
  if (config.draw.every > 0) pictures.emplace(config, *prompts, group.device());
  sampler.emplace(training->data().size(), group.world_size(), config.train_batch_size, config.accumulation,
                  config.seed);
}

void Session::require_same_data() const {
  if (saved_->data.empty() || data_identity_ == saved_->data) return;
  throw ConfigError(config.settings.where("data.train") + ": these are not the data that " + checkpoint_ +
                    " was trained on (now / then): `" + data_identity_ + "` / `" + saved_->data +
                    "`; name those, or start a new run with " + start_from(checkpoint_));
}

void Session::build_model() {
  if (!checkpoint_.empty()) {
    on_all_ranks(group, [&] {
      saved_ = read_checkpoint_state(checkpoint_);
      const std::string difference = first_difference(meaning_of(config.settings.yaml()), saved_->meaning);
      if (!difference.empty()) {
        throw ConfigError(config.source + ": differs from the configuration of " + checkpoint_ +
                          " (now / then): " + difference + "; resume with the same one, or start a new run with " +
                          start_from(checkpoint_));
      }
      require_same_data();
      first_step = saved_->step;
      if (saved_->global_batch != sampler->global_batch_size()) {
        throw ConfigError(checkpoint_ + ": was made with " + std::to_string(saved_->global_batch) +
                          " rows a step, but this run has " + std::to_string(sampler->global_batch_size()) +
                          "; adapt train_batch_size to the number of ranks");
      }
    });
  }
  model.emplace(make_model(config, checkpoint_, schedule, group));
  on_all_ranks(group, [&] {
    if (saved_ && saved_->base != model->base_fingerprint())
      throw ConfigError(config.settings.where(config.model_pretrained.empty() ? "model.config" : "model.pretrained") +
                        ": is not the UNet that the adapters of " + checkpoint_ + " were trained on; name that one");
    const auto& data = training->data();
    check_model_fits(model->unet()->config(), data);
  });
  optimizer.emplace(model->parameters(), config.optimizer, config.max_train_steps);
  if (config.autocast == at::kHalf) loss_scale.emplace(config.loss_scale, group.device());
  if (config.use_ema) ema.emplace(model->parameter_list(), config.ema_decay);
  reducer = std::make_unique<GradientReducer>(model->parameter_list(), group, config.bucket_mb);
  settle_buckets();
}

void Session::settle_buckets() {
  const at::TensorOptions real = at::TensorOptions(at::kFloat).device(group.device());
  const auto& shape = training->data().latent_shape();
  const at::Tensor nothing = at::zeros({1, shape[0], shape[1], shape[2]}, real);
  const at::Tensor answer = model->predict(nothing, at::zeros({1}, real.dtype(at::kLong)), training->nothing(1));
  const at::Tensor loss = 0 * answer.mean();
  reducer->prepare(loss, true);
  loss.backward();
  for (auto& p : model->parameter_list()) p.mutable_grad().reset();
}

void Session::build_sieve() {
  if (!config.sieve) return;
  Setup setup;
  setup.filters = config.filters;
  setup.dataset_size = training->data().size();
  setup.rows_per_micro_batch = config.train_batch_size;
  setup.micro_batches = config.accumulation;
  setup.num_timesteps = schedule.num_timesteps();
  setup.held_out_size = held_out ? held_out->data().size() : 0;
  setup.group_id = training->data().group_ids();
  setup.device = group.device();
  setup.run_id = run_id_;
  setup.ledger_path = dry_ ? "" : folder.file("ledger.h5");
  sieve.emplace(Sieve::from_settings(config.settings.section("sieve"), group.communicator(), setup));
}

void Session::restore() {
  nonfinite_in_a_row = saved_->nonfinite_in_a_row;
  const std::string optimizer_file = checkpoint_ + "/optimizer.safetensors";
  TensorMap saved = load_safetensors(optimizer_file);
  if (loss_scale) loss_scale->restore(saved, optimizer_file);
  optimizer->restore(saved, optimizer_file);
  if (ema) restore_ema();
  if (sieve) sieve->restore(load_safetensors(checkpoint_ + "/sieve.safetensors"));
  if (saved_->world_size != group.world_size()) {
    log_info("resuming a run of " + std::to_string(saved_->world_size) + " ranks on " +
             std::to_string(group.world_size()) + ": the same up to the order of summation");
  }
}

void Session::restore_ema() {
  if (Lora* lora = model->lora()) {
    const WithEma averages_in_place(&*ema);
    lora->restore(checkpoint_ + "/lora_ema/" + lora_file_name);
  } else {
    ema->copy_from(load_unet(checkpoint_ + "/unet_ema")->parameters());
  }
}

void Session::start_writing() {
  const bool first = group.rank() == 0;
  if (first) {
    folder.make(config.settings.where("output_dir"));
    if (saved_) {
      folder.trim_metrics(first_step);
      folder.abandon_after(first_step);
    }
    folder.tidy();
    folder.describe(run_id_, group.world_size(), group.device().str(), config.settings.yaml());
  }
  MetricsOptions options;
  if (first) options.jsonl = folder.file("metrics.jsonl");
  if (first && config.tensorboard) options.events = folder.file("tensorboard");
  options.first_step = first_step;
  options.rows_per_step = sampler->global_batch_size();
  if (sieve) options.channels = sieve->channels();
  metrics.emplace(std::move(options));
}

void Session::save(int64_t step) {
  on_all_ranks(group, [&] {
    if (group.rank() != 0) return;
    metrics->flush();
    CheckpointState state;
    state.step = step;
    state.seed = config.seed;
    state.world_size = group.world_size();
    state.global_batch = sampler->global_batch_size();
    state.nonfinite_in_a_row = nonfinite_in_a_row;
    state.run_id = run_id_;
    state.meaning = meaning_of(config.settings.yaml());
    state.base = model->base_fingerprint();
    state.data = data_identity_;
    CheckpointParts parts;
    parts.weights_name = model->kind();
    parts.save_weights = [&](const std::string& to) { model->save(to); };
    if (ema) {
      parts.save_weights_ema = [&](const std::string& to) {
        const WithEma averaged(&*ema);
        model->save(to);
      };
    }
    parts.scheduler = scheduler_json(config.diffusion.schedule, config.diffusion.draw);
    parts.optimizer = optimizer->state();
    if (loss_scale) parts.optimizer.merge(loss_scale->state());
    if (sieve) parts.sieve = sieve->state();
    write_checkpoint(folder.checkpoint(step), state, parts);
    folder.rotate(config.checkpoints_total_limit, step);
  });
}

void Session::finish() {
  on_all_ranks(group, [&] {
    if (group.rank() == 0) folder.finish(config.max_train_steps);
  });
}

std::string Session::describe() {
  const int64_t rows = sampler->global_batch_size(), size = training->data().size();
  return parameter_counts(*model) + " on " + std::to_string(group.world_size()) + " x " + group.device().str() + "; " +
         std::to_string(size) + " samples of " + training->data().path() + "; " +
         std::to_string(config.max_train_steps) + " steps of " + std::to_string(rows) +
         " rows = " + std::to_string(config.max_train_steps * rows / size) + " epochs; " +
         (sieve                          ? "sieve on"
          : config.settings.has("sieve") ? "sieve off (filter: off)"
                                         : "no sieve");
}

}  // namespace memsieve::trainer
