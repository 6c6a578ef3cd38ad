#pragma once
// What one step tells the host, at once on a CPU and some steps later from a GPU.

#include <cstddef>
#include <cstdint>
#include <vector>

namespace memsieve::trainer {

struct StepNumbers {
  /// of the per-row losses over all ranks, before weights
  double loss_sum = 0;
  /// ranks that have been asked to stop
  double stop = 0;
  /// ranks that could not read their rows or write their files
  double failed = 0;
  /// as loss_sum, of the rows to forget
  double forget_loss_sum = 0;
  double grad_norm = 0, lr = 0, skipped = 0, nonfinite = 0;
  /// that this step's gradients had; 0 without fp16
  double loss_scale = 0;
  /// what the gradient of the rows to forget was multiplied by before it was subtracted; 0 = nothing is forgotten
  double forget_weight = 0;
};

/// Places of the numbers in the tensor that carries them: first those that are summed over the ranks.
enum class StepNumber : int64_t {
  loss_sum,
  stop,
  failed,
  forget_loss_sum,
  grad_norm,
  lr,
  skipped,
  nonfinite,
  loss_scale,
  forget_weight
};
inline constexpr int64_t kSummedNumbers = 4;
inline constexpr size_t kStepNumbers = 10;

/// `values`: kStepNumbers of them.
inline StepNumbers step_numbers(const std::vector<double>& values) {
  const auto at = [&](StepNumber number) { return values.at(static_cast<size_t>(number)); };
  return {.loss_sum = at(StepNumber::loss_sum),
          .stop = at(StepNumber::stop),
          .failed = at(StepNumber::failed),
          .forget_loss_sum = at(StepNumber::forget_loss_sum),
          .grad_norm = at(StepNumber::grad_norm),
          .lr = at(StepNumber::lr),
          .skipped = at(StepNumber::skipped),
          .nonfinite = at(StepNumber::nonfinite),
          .loss_scale = at(StepNumber::loss_scale),
          .forget_weight = at(StepNumber::forget_weight)};
}

}  // namespace memsieve::trainer
