#pragma once
// Averages gradients over the ranks while backward still runs: c10d::Reducer, which is what
// DistributedDataParallel uses.

#include <ATen/core/Tensor.h>
#include <runtime/group.h>

#include <memory>
#include <vector>

namespace c10d {
class Reducer;
}

namespace memsieve::runtime {

/// COLLECTIVE. Overwrites the tensors (parameters, buffers) with those of rank `root`, in place, without gradient. Call
/// before training: ranks that start apart stay apart.
void broadcast_parameters(const std::vector<at::Tensor>& tensors, Group& group, int root = 0);

/// After a backward that was prepared with sync = true, each parameter's .grad holds the MEAN over ranks of what that
/// rank had accumulated since its .grad was last cleared. Works with one rank too. Every parameter must take part in
/// every synchronised backward, so multiply a row by 0 rather than leave it out.
class GradientReducer {
 public:
  /// COLLECTIVE. `params`: leaves that require gradient, in the same order with the same shapes on every rank, on the
  /// group's device; PeerError if they differ. Buckets of `bucket_mb` MiB (the first of 1 MiB) in reverse order, as DDP
  /// makes them.
  GradientReducer(std::vector<at::Tensor> params, Group& group, double bucket_mb = 25);
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// Call after the forward and right before each backward. sync = false: the backward only accumulates, without
  /// communication (all micro-batches but the last). sync = true makes the backward COLLECTIVE; so `sync` must depend
  /// on the configuration only.
  void prepare(const at::Tensor& loss, bool sync);

  /// Bytes of one all-reduced set of gradients.
  int64_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<c10d::Reducer> reducer_;
  int64_t bytes_ = 0;
};

}  // namespace memsieve::runtime
