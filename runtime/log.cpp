#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <runtime/log.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>

namespace memsieve::runtime {

namespace {

struct Place {
  int rank = 0;
  int world_size = 1;
};
Place place;

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = std::make_shared<spdlog::logger>("memsieve", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%H:%M:%S %^%l%$ %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

std::string prefixed(const std::string& message) {
  return place.world_size > 1 && place.rank > 0 ? "[rank " + std::to_string(place.rank) + "] " + message : message;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string clock_text(double seconds) {
  char text[32];
  const auto s = std::llround(seconds);
  if (s >= 3600) {
    std::snprintf(text, sizeof text, "%d:%02d:%02d", int(s / 3600), int(s / 60 % 60), int(s % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d", int(s / 60), int(s % 60));
  }
  return text;
}

}  // namespace

void log_as(int rank, int world_size) {
  place = {rank, world_size};
}

void log_info(const std::string& message) {
  if (place.rank == 0) logger().info("{}", message);
}
void log_warning(const std::string& message) {
  logger().warn("{}", prefixed(message));
}
void log_error(const std::string& message) {
  logger().error("{}", prefixed(message));
}

Progress::Progress(std::string title, int64_t total, int64_t every)
    : title_(std::move(title)), total_(total), every_(every), started_(now()) {}

Progress::~Progress() {
  pause();
}

void Progress::show(int64_t done, const std::string& note) {
  if (place.rank != 0) return;
  // The rate counts from the first call, so a resumed run does not count the steps of the earlier one.
  if (first_ < 0) {
    first_ = done > 0 ? done - 1 : 0;
  }
  const double rate = (now() - started_) / static_cast<double>(std::max<int64_t>(1, done - first_));
  const std::string left = done < total_ ? clock_text(rate * static_cast<double>(total_ - done)) + " left" : "done";
  const std::string counts = std::to_string(done) + "/" + std::to_string(total_);
  if (isatty(STDERR_FILENO) != 0) {
    const int filled = static_cast<int>(20 * done / std::max<int64_t>(1, total_));
    const std::string bar = std::string(filled, '#') + std::string(20 - filled, '.');
    std::fprintf(stderr, "\r\033[K%s [%s] %s %s  %s", title_.c_str(), bar.c_str(), counts.c_str(), left.c_str(),
                 note.c_str());
    std::fflush(stderr);
    open_ = true;
  } else if (done % every_ == 0 || done == total_) {
    log_info(title_ + " " + counts + " (" + left + ") " + note);
  }
}

void Progress::pause() {
  if (!open_) return;
  std::fputc('\n', stderr);
  open_ = false;
}

}  // namespace memsieve::runtime
