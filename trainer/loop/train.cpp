#include <ATen/ATen.h>
#include <memsieve/error.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <runtime/stop.h>
#include <trainer/loop/run_evaluation.h>
#include <trainer/loop/session.h>
#include <trainer/loop/step_log.h>
#include <trainer/loop/train.h>
#include <trainer/metrics/mailbox.h>

namespace memsieve::trainer {

namespace {

/// Steps that a GPU may be behind the host: as many as the sieve's reports are.
constexpr size_t kLag = 2;

struct RunOptions {
  int64_t max_train_steps = 0, checkpointing_steps = 0, max_nonfinite_steps = 0, log_every = 1;
  bool forgets = false;
  EvaluationOptions evaluation;
};

EvaluationParts evaluation_parts(Session& s, Group& group) {
  RunData& data = s.data();
  return {.model = s.trainee().model(),
          .ema = s.trainee().ema(),
          .validation = data.validation ? &*data.validation : nullptr,
          .prompts = data.prompts ? &*data.prompts : nullptr,
          .pictures = s.pictures(),
          .schedule = data.schedule,
          .folder = s.folder(),
          .metrics = s.metrics(),
          .group = group};
}

bool is_data_error(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const DataError&) {
    return true;
  } catch (...) {
    return false;
  }
}

class Run {
 public:
  Run(const RunOptions& options, Session& session, Group& group)
      : options_(options),
        session_(session),
        group_(group),
        step_(session.step_options(), session.step_parts()),
        evaluation_(options.evaluation, evaluation_parts(session, group)),
        log_({.max_train_steps = options.max_train_steps, .log_every = options.log_every, .forgets = options.forgets},
             session.metrics(), session.sieve(), session.sampler()),
        mailbox_(group.device(), kLag) {
    if (session.start().saved) nonfinite_in_a_row_ = session.start().saved->nonfinite_in_a_row;
  }

  ExitCode go() {
    const int64_t first = session_.start().first_step(), last = options_.max_train_steps;
    evaluate(first, first >= last);
    for (int64_t step = first; step < last;) {
      one_step(step++);
      const bool end = step == last;
      if (stop_ && !end) return stop_here(step);
      const bool save = end || due(options_.checkpointing_steps, step);
      const bool look = end || evaluation_.is_due(step, end);
      if (save || look) read_mail(true);
      if (stop_ && !end) return stop_here(step);
      // What takes long comes after the checkpoint: a run that is resumed from it evaluates anew.
      if (save) save_after(step);
      if (look) evaluate(step, end);
    }
    log_.pause();
    session_.finish();
    log_info("done: " + std::to_string(last) + " steps; " + session_.folder().checkpoint(last));
    return kDone;
  }

 private:
  void one_step(int64_t step) {
    log_.begin(step, step_.epoch(step));
    mailbox_.push(step, step_.run(step));
    read_mail(false);
    try {
      session_.check_folder();
      log_.write();
    } catch (const std::exception&) {  // rank 0 alone writes; all ranks learn of it with the next step
      step_.fail(std::current_exception());
    }
    log_.show(step + 1);
  }

  /// Works through the numbers that are due; the same ones on every rank at the same step.
  void read_mail(bool all) {
    for (const auto& letter : mailbox_.take(all)) {
      const StepNumbers n = step_numbers(letter.values);
      if (n.failed > 0) fail_together();
      if (n.stop > 0) stop_ = true;
      nonfinite_in_a_row_ = n.nonfinite > 0 ? nonfinite_in_a_row_ + 1 : 0;
      log_.add(letter.step, n, letter.arrived);
      if (nonfinite_in_a_row_ < options_.max_nonfinite_steps) continue;
      flush_metrics();
      throw NonFiniteError("the gradient was NaN or Inf in " + std::to_string(nonfinite_in_a_row_) +
                           " steps in a row, the last at step " + std::to_string(letter.step) +
                           "; lower learning_rate, or resume from an earlier checkpoint");
    }
    if (!all) return;
    on_all_ranks(group_, [&] {
      if (step_.failure()) std::rethrow_exception(step_.failure());
      if (session_.sieve() != nullptr) session_.sieve()->flush();  // its reports come as late as the numbers
      log_.write();
    });
  }

  /// COLLECTIVE: the step's numbers, by which all ranks know that some have failed, are the same on every rank.
  [[noreturn]] void fail_together() {
    const auto& mine = step_.failure();
    const bool data = group_.any(mine && is_data_error(mine));
    try {
      agree(group_, mine);
    } catch (const PeerError& peer) {
      // All ranks read the same data: what is wrong with them ends all with the same exit code.
      if (data) throw DataError(peer.what());
      throw;
    }
    throw PeerError("a rank could not read its rows or write its files, but does not say why");
  }

  void evaluate(int64_t step, bool end) {
    if (!evaluation_.is_due(step, end)) return;
    evaluation_.run(step, end, [&] { log_.pause(); });
    flush_metrics();
  }

  void flush_metrics() {
    on_all_ranks(group_, [&] {
      log_.write();
      session_.metrics().flush();
    });
  }

  void save_after(int64_t step) {
    const UnhurriedStop unhurried;
    session_.save(step, nonfinite_in_a_row_, step_.stream_position(step));
  }

  ExitCode stop_here(int64_t step) {
    read_mail(true);
    log_.pause();
    save_after(step);
    if (group_.rank() == 0) {
      log_warning("stopped by a signal after " + std::to_string(step) + " steps; continue with --resume-from latest");
    }
    return kStopped;
  }

  RunOptions options_;
  Session& session_;
  Group& group_;
  TrainStep step_;
  RunEvaluation evaluation_;
  StepLog log_;
  Mailbox mailbox_;
  /// steps without a usable gradient, up to now
  int64_t nonfinite_in_a_row_ = 0;
  bool stop_ = false;
};

RunOptions run_options(const TrainConfig& config) {
  const int64_t batch_size = rows_without_gradient(config.train_batch_size, config.gradient_checkpointing);
  return {
      .max_train_steps = config.max_train_steps,
      .checkpointing_steps = config.checkpointing_steps,
      .max_nonfinite_steps = config.max_nonfinite_steps,
      .log_every = config.log_every,
      .forgets = config.forget.has_value(),
      .evaluation = {.validate_every = config.validation.every,
                     .draw_every = config.draw.every,
                     .validation = {.seed = config.seed, .draws = config.validation.draws, .batch_size = batch_size},
                     .draw = {.seed = config.seed,
                              .per_prompt = config.draw.per_prompt,
                              .batch_size = batch_size,
                              .ddim = config.diffusion.draw}}};
}

ExitCode train_session(const TrainConfig& config, Session& session, Group& group) {
  if (session.needs_reference() && !session.make_reference()) {
    if (group.rank() != 0) return kStopped;
    session.folder().forget();
    log_warning("stopped by a signal before the first step; nothing was trained, so there is no checkpoint");
    return kStopped;
  }
  return Run(run_options(config), session, group).go();
}

}  // namespace

ExitCode train(const TrainConfig& config, Group& group, bool dry) {
  at::globalContext().setAllowTF32CuBLAS(config.allow_tf32);
  Session session(config, group, dry);
  log_info(session.describe());
  if (group.rank() == 0) {
    for (const auto& note : config.notes) log_warning(note);
    if (session.sieve() != nullptr)
      for (const auto& warning : session.sieve()->warnings()) log_warning("sieve: " + warning);
  }
  if (dry) {
    log_info("dry run: everything is in order; nothing was written");
    return kDone;
  }
  const std::string steps_done = std::to_string(session.start().first_step());
  if (session.finished()) {
    log_info("nothing to do: " + steps_done + " steps are done already");
    return kDone;
  }
  if (session.start().saved) log_info("resuming after " + steps_done + " steps");
  const GracefulStop graceful(config.stop_seconds);
  try {
    return train_session(config, session, group);
  } catch (const PeerError&) {
    // A peer has found it first: a data file that is shared has changed for this rank, too.
    session.data().require_unchanged();
    throw;
  }
}

}  // namespace memsieve::trainer
