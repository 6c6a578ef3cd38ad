#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <memsieve/error.h>
#include <runtime/reducer.h>

#include <algorithm>
#include <sstream>
#include <torch/csrc/distributed/c10d/reducer.hpp>

namespace memsieve::runtime {

namespace {

// Every rank learns of a difference, so none is left waiting in the first backward.
void check_same_everywhere(const std::vector<at::Tensor>& params, Group& group) {
  std::ostringstream mine;
  mine << params.size() << " parameters:";
  for (const auto& p : params) mine << ' ' << p.sizes() << p.scalar_type();
  const bool differs = group.broadcast(mine.str()) != mine.str();
  if (group.any(differs))
    throw PeerError("reducer: the ranks hold different parameters" +
                    std::string(differs ? " (rank " + std::to_string(group.rank()) + " differs from rank 0)" : "") +
                    "; start all of them with the same configuration");
}

}  // namespace

void broadcast_parameters(const std::vector<at::Tensor>& tensors, Group& group, int root) {
  const c10::NoGradGuard no_grad;
  for (const auto& tensor : tensors) {
    const at::Tensor values = tensor.detach();
    if (values.is_contiguous()) {
      group.broadcast(values, root);
      continue;
    }
    const at::Tensor copy = values.contiguous();
    group.broadcast(copy, root);
    values.copy_(copy);
  }
}

GradientReducer::GradientReducer(std::vector<at::Tensor> params, Group& group, double bucket_mb) {
  if (!(bucket_mb > 0)) throw ConfigError("reducer: bucket_mb must be above 0");
  check_same_everywhere(params, group);
  for (const auto& p : params) bytes_ += static_cast<int64_t>(p.nbytes());
  const auto cap = static_cast<int64_t>(bucket_mb * 1024 * 1024);
  const int64_t first_cap = std::min<int64_t>(cap, c10d::kDefaultFirstBucketBytes);
  const std::vector<bool> sparse(params.size(), false);
  auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
      params, {static_cast<size_t>(first_cap), static_cast<size_t>(cap)}, sparse));
  // Backward reaches the last parameters first, so theirs is the first bucket to be sent.
  std::reverse(buckets.begin(), buckets.end());
  reducer_ = std::make_shared<c10d::Reducer>(
      std::move(params), std::move(buckets), group.process_group(), sparse, cap,
      /*find_unused_parameters=*/false,
      /*gradient_as_bucket_view=*/true, std::unordered_map<size_t, std::string>{}, first_cap,
      /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>{});
}

GradientReducer::~GradientReducer() {
  if (reducer_) reducer_->remove_autograd_hooks();
}

void GradientReducer::prepare(const at::Tensor& loss, bool sync) {
  if (!loss.requires_grad())
    throw ConfigError("reducer: the loss has no gradient; multiply rows by 0 rather than detach or leave them out");
  if (!sync) return;
  // Once, after the first synchronised backward: buckets in the order in which gradients really became ready.
  reducer_->rebuild_buckets();
  reducer_->prepare_for_backward({});
}

}  // namespace memsieve::runtime
