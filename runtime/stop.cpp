#include <runtime/stop.h>

#include <csignal>

namespace memsieve::runtime {

namespace {
volatile std::sig_atomic_t signals = 0;

void on_signal(int number) {
  // A launcher passes Ctrl-C on although the terminal has already sent it, so a second signal is no sign of impatience.
  signals = signals + 1;
  if (signals < 3) return;
  std::signal(number, SIG_DFL);
  std::raise(number);
}
}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
}

bool stop_requested() {
  return signals > 0;
}
void request_stop(bool value) {
  signals = value ? 1 : 0;
}

}  // namespace memsieve::runtime
