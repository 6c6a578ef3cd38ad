#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <memsieve/error.h>
#include <diffusion/io/atomic_file.h>
#include <runtime/agreement.h>
#include <trainer/loop/evaluate.h>
#include <runtime/log.h>
#include <trainer/metrics/mailbox.h>
#include <trainer/loop/reference_pass.h>
#include <runtime/stop.h>
#include <trainer/loop/train.h>
#include <trainer/loop/train_step.h>
#include <diffusion/io/contact_sheet.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <numeric>

namespace memsieve::trainer {

namespace {

using Time = std::chrono::steady_clock::time_point;

/// Steps that a GPU may be behind the host: as many as the sieve's reports are.
constexpr size_t kLag = 2;

/// [P, S, ...] as [rows, prompts_per_row * S, ...]: a sheet about as wide as high, the pictures of a prompt side
/// by side.
at::Tensor as_sheet(const at::Tensor& images) {
  const int64_t prompts = images.size(0), seeds = images.size(1);
  const auto side = std::sqrt(static_cast<double>(prompts * seeds));
  const int64_t in_a_row = std::clamp<int64_t>(std::llround(side / static_cast<double>(seeds)), 1, prompts);
  const int64_t rows = (prompts + in_a_row - 1) / in_a_row;
  auto shape = images.sizes().vec();
  shape[0] = rows * in_a_row;
  at::Tensor sheet = at::full(shape, 255, images.options());
  sheet.narrow(0, 0, prompts).copy_(images);
  return sheet.view({rows, in_a_row * seeds, shape[2], shape[3], shape[4]});
}

class Run {
 public:
  explicit Run(Session& session)
      : s_(session),
        step_(session),
        mailbox_(session.group.device(), kLag),
        progress_("step", session.config.max_train_steps, session.config.log_every) {}

  ExitCode go() {
    const int64_t last = s_.config.max_train_steps;
    evaluate(s_.first_step, s_.first_step >= last);
    for (int64_t step = s_.first_step; step < last;) {
      one_step(step++);
      const bool end = step == last;
      if (stop_ && !end) return stop_here(step);
      const bool save = end || due(s_.config.checkpointing_steps, step);
      const bool look = end || due(s_.config.validation.every, step) || due(s_.config.draw.every, step);
      if (save || look) read_mail(true);
      if (stop_ && !end) return stop_here(step);
      // What takes long comes after the checkpoint: a run that is resumed from it evaluates anew.
      if (save) s_.save(step);
      if (look) evaluate(step, end);
    }
    progress_.pause();
    s_.finish();
    log_info("done: " + std::to_string(last) + " steps; " + s_.folder.checkpoint(last));
    return kDone;
  }

 private:
  static bool due(int64_t every, int64_t step) { return every > 0 && step % every == 0; }

  void one_step(int64_t step) {
    begun_[step] = std::chrono::steady_clock::now();
    mailbox_.push(step, step_.run(step));
    read_mail(false);
    try {
      write_metrics();
    } catch (const std::exception&) {  // rank 0 alone writes; all ranks learn of it with the next step
      step_.fail(std::current_exception());
    }
    if (smooth_loss_ >= 0) progress_.show(step + 1, note());
  }

  /// Works through the numbers that are due; the same ones on every rank at the same step.
  void read_mail(bool all) {
    for (const auto& letter : mailbox_.take(all)) {
      const StepNumbers n = step_numbers(letter.values);
      if (n.failed > 0) fail_together(n);
      if (n.stop > 0) stop_ = true;
      s_.nonfinite_in_a_row = n.nonfinite > 0 ? s_.nonfinite_in_a_row + 1 : 0;
      add_metrics(letter.step, n, letter.arrived);
      if (s_.nonfinite_in_a_row < s_.config.max_nonfinite_steps) continue;
      flush_metrics();
      throw NonFiniteError("the gradient was NaN or Inf in " + std::to_string(s_.nonfinite_in_a_row) +
                           " steps in a row, the last at step " + std::to_string(letter.step) +
                           "; lower learning_rate, or resume from an earlier checkpoint");
    }
    if (!all) return;
    on_all_ranks(s_.group, [&] {
      if (step_.failure()) std::rethrow_exception(step_.failure());
      if (s_.sieve) s_.sieve->flush();  // its reports come as late as the numbers
      write_metrics();
    });
  }

  [[noreturn]] void fail_together(const StepNumbers& n) {
    if (step_.failure()) std::rethrow_exception(step_.failure());
    const auto count = static_cast<int64_t>(n.failed);
    throw PeerError(count == 1 ? "rank " + std::to_string(static_cast<int64_t>(n.guilty) - 1) +
                                     " could not read its rows or write its files"
                               : std::to_string(count) + " ranks could not read their rows");
  }

  /// A step lasts from its beginning, or from the end of the one before if the GPU was still at that, until its
  /// numbers arrive.
  void add_metrics(int64_t step, const StepNumbers& n, Time arrived) {
    const auto began = begun_.extract(step).mapped();
    StepMetrics m;
    m.step = step;
    m.epoch = s_.sampler->epoch(step);
    m.loss = n.loss_sum / static_cast<double>(s_.sampler->global_batch_size());
    m.lr = n.lr;
    m.grad_norm = n.grad_norm;
    m.loss_scale = n.loss_scale;
    m.step_ms = std::chrono::duration<double, std::milli>(arrived - std::max(began, arrived_)).count();
    m.skipped = n.skipped > 0;
    m.nonfinite = n.nonfinite > 0;
    arrived_ = arrived;
    latest_ = m;
    smooth_loss_ = smooth_loss_ < 0 ? m.loss : 0.98 * smooth_loss_ + 0.02 * m.loss;
    unwritten_.push_back(m);
  }

  void write_metrics() {
    for (; !unwritten_.empty(); unwritten_.pop_front()) s_.metrics->step(unwritten_.front());
    if (!s_.sieve) return;
    for (const auto& report : s_.sieve->take_reports()) {
      s_.metrics->report(report);
      rows_ += report.rows;
      dropped_ += report.dropped;
    }
  }

  std::string note() const {
    char text[160];
    int n =
        std::snprintf(text, sizeof text, "loss %.4f  lr %.2e  %.0f ms/step", smooth_loss_, latest_.lr, latest_.step_ms);
    if (s_.sieve && rows_ > 0 && n > 0) {
      std::snprintf(text + n, sizeof text - static_cast<size_t>(n), "  dropped %.1f%%",
                    100.0 * double(dropped_) / double(rows_));
    }
    return text;
  }

  void evaluate(int64_t step, bool end = false) {
    const bool validate_now = s_.config.validation.every > 0 && (end || due(s_.config.validation.every, step));
    const bool draw_now = s_.config.draw.every > 0 && (end || due(s_.config.draw.every, step));
    if (!validate_now && !draw_now) return;
    const WithEma averaged(s_.ema ? &*s_.ema : nullptr);
    if (validate_now) {
      const ValidationLoss v = validate(*s_.model, *s_.validation, s_.group, s_.config);
      s_.metrics->validation(step, v.loss, v.rows);
      char text[64];
      std::snprintf(text, sizeof text, "%.5f", v.loss);
      progress_.pause();
      log_info("validation loss after " + std::to_string(step) + " steps: " + text);
    }
    if (draw_now) draw(step);
    flush_metrics();
  }

  void draw(int64_t step) {
    const at::Tensor images = draw_samples(*s_.model, *s_.prompts, *s_.pictures, s_.schedule, s_.group, s_.config);
    on_all_ranks(s_.group, [&] {
      if (s_.group.rank() != 0) return;
      const std::string name = "samples/" + step_name(step);
      std::error_code error;
      std::filesystem::create_directories(s_.folder.file("samples"), error);
      write_samples(s_.folder.file(name + ".h5"), images);
      write_captions();
      write_contact_sheet(s_.folder.file(name + ".png"), as_sheet(images), {2, 2});
      s_.metrics->samples(step, name + ".h5", name + ".png");
    });
  }

  /// samples/captions.txt: line p is the caption of the sheet's p-th prompt, left to right, then down.
  void write_captions() {
    std::vector<int64_t> all(static_cast<size_t>(s_.prompts->size()));
    std::iota(all.begin(), all.end(), 0);
    std::string text;
    for (std::string caption : s_.prompts->captions(all)) {
      std::replace(caption.begin(), caption.end(), '\n', ' ');
      text += caption + "\n";
    }
    write_text_atomically(s_.folder.file("samples/captions.txt"), text);
  }

  void flush_metrics() {
    on_all_ranks(s_.group, [&] {
      write_metrics();
      s_.metrics->flush();
    });
  }

  ExitCode stop_here(int64_t step) {
    read_mail(true);
    progress_.pause();
    s_.save(step);
    if (s_.group.rank() == 0) {
      log_warning("stopped by a signal after " + std::to_string(step) + " steps; continue with --resume-from latest");
    }
    return kStopped;
  }

  Session& s_;
  TrainStep step_;
  Mailbox mailbox_;
  Progress progress_;
  /// of steps whose numbers have not arrived
  std::map<int64_t, Time> begun_;
  /// of the latest numbers
  Time arrived_{};
  std::deque<StepMetrics> unwritten_;
  StepMetrics latest_;
  double smooth_loss_ = -1;
  int64_t rows_ = 0, dropped_ = 0;
  bool stop_ = false;
};

}  // namespace

ExitCode train(const TrainConfig& config, Group& group, bool dry) {
  at::globalContext().setAllowTF32CuBLAS(config.allow_tf32);
  Session session(config, group, dry);
  log_info(session.describe());
  if (group.rank() == 0) {
    for (const auto& note : config.notes) log_warning(note);
    if (session.sieve)
      for (const auto& warning : session.sieve->warnings()) log_warning("sieve: " + warning);
  }
  if (dry) {
    log_info("dry run: everything is in order; nothing was written");
    return kDone;
  }
  if (session.finished()) {
    log_info("nothing to do: " + std::to_string(session.first_step) + " steps are done already");
    return kDone;
  }
  if (session.first_step > 0) log_info("resuming after " + std::to_string(session.first_step) + " steps");
  if (session.sieve && session.sieve->reference_draws() > 0 && !session.sieve->has_reference()) {
    const RowMaker* held_out = session.held_out ? &*session.held_out : nullptr;
    if (!reference_pass(*session.sieve, *session.model, *session.training, held_out, group, config)) {
      if (group.rank() != 0) return kStopped;
      session.folder.forget();
      log_warning("stopped by a signal before the first step; nothing was trained, so there is no checkpoint");
      return kStopped;
    }
  }
  return Run(session).go();
}

const std::exception& root_cause(const std::exception& error) {
  const auto* peer = dynamic_cast<const PeerError*>(&error);
  if (peer == nullptr || !peer->cause()) return error;
  try {
    std::rethrow_exception(peer->cause());
  } catch (const std::exception& cause) {
    return cause;  // `error` keeps it alive
  }
}

ExitCode exit_code_of(const std::exception& error) {
  if (const auto& cause = root_cause(error); &cause != &error) return exit_code_of(cause);
  if (dynamic_cast<const ConfigError*>(&error) != nullptr) return kUsageError;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return kUsageError;
  if (dynamic_cast<const DataError*>(&error) != nullptr) return kDataFailure;
  if (dynamic_cast<const NonFiniteError*>(&error) != nullptr) return kDiverged;
  if (is_peer_failure(error)) return kPeerFailure;
  return kOtherError;
}

}  // namespace memsieve::trainer
