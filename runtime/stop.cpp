#include <runtime/exit_codes.h>
#include <runtime/stop.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>

namespace memsieve::runtime {

namespace {

// Handlers run on any thread, and may only use what POSIX calls async-signal-safe.
std::atomic<int> signals{0}, unhurried{0};
std::atomic<unsigned> patience{0};  // seconds; 0 = no GracefulStop lives
std::atomic<unsigned> progress{0}, progress_seen{0};
static_assert(std::atomic<unsigned>::is_always_lock_free);

[[noreturn]] void end_now(const char* line) {
  [[maybe_unused]] const auto written = write(STDERR_FILENO, line, std::strlen(line));
  _exit(kStopped);
}

void watch() {
  progress_seen = progress.load();
  alarm(patience);
}

void on_signal(int) {
  const int kept = errno;
  if (patience == 0) end_now("stopped by a signal; no step was under way\n");
  // A launcher passes Ctrl-C on although the terminal has already sent it, so a second signal is no sign of impatience.
  if (++signals >= 3) end_now("stopped at once by a third signal; continue with --resume-from auto\n");
  if (signals == 1) watch();
  errno = kept;
}

void on_alarm(int) {
  const int kept = errno;
  if (patience > 0 && unhurried == 0 && progress == progress_seen)
    end_now(
        "stopped by a signal in the middle of a step that did not end within stop_seconds; continue with "
        "--resume-from auto\n");
  watch();
  errno = kept;
}

void handle(int number, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(number, &action, nullptr);
}

}  // namespace

void catch_stop_signals() {
  handle(SIGALRM, on_alarm);
  handle(SIGTERM, on_signal);
  handle(SIGINT, on_signal);
}

GracefulStop::GracefulStop(double seconds) {
  patience = static_cast<unsigned>(std::clamp(std::ceil(seconds), 1.0, 1e9));
}

GracefulStop::~GracefulStop() {
  patience = 0;
  alarm(0);
}

UnhurriedStop::UnhurriedStop() {
  ++unhurried;
}

UnhurriedStop::~UnhurriedStop() {
  note_progress();
  --unhurried;
}

bool stop_requested() {
  note_progress();
  return signals > 0;
}

void note_progress() {
  ++progress;
}

void request_stop(bool value) {
  signals = value ? 1 : 0;
}

}  // namespace memsieve::runtime
