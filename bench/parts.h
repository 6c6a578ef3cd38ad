#pragma once
// What a step's time goes to.

#include <c10/core/Event.h>
#include <trainer/loop/train_step.h>

#include <array>
#include <chrono>
#include <optional>
#include <vector>

namespace memsieve::bench {

constexpr size_t kParts = 6;
const char* part_name(trainer::Part part);

/// Milliseconds of each Part, in its order.
using PartTimes = std::array<double, kParts>;

/// Listens to a TrainStep as long as it lives. On a GPU the times are those of the device, between events in its
/// stream. Communication that overlaps backward counts as backward; `reduce` is what comes after the last gradient.
class PartTimer {
 public:
  PartTimer(trainer::TrainStep& step, std::vector<at::Tensor> parameters, c10::Device device);
  ~PartTimer();
  PartTimer(const PartTimer&) = delete;
  PartTimer& operator=(const PartTimer&) = delete;

  /// Call before each step.
  void begin();
  /// Means over the steps since the last call. Waits for a GPU.
  PartTimes take();

 private:
  struct Mark {
    /// nullopt: the beginning of a step
    std::optional<trainer::Part> ended;
    std::chrono::steady_clock::time_point time;
    std::optional<c10::Event> event;
  };
  Mark now(std::optional<trainer::Part> ended) const;
  void ended(trainer::Part part);
  static double between(const Mark& from, const Mark& to);

  trainer::TrainStep& step_;
  std::vector<at::Tensor> parameters_;
  c10::Device device_;
  std::vector<unsigned> hooks_;
  std::vector<Mark> marks_;
  std::optional<Mark> last_gradient_;
  int64_t steps_ = 0;
};

}  // namespace memsieve::bench
