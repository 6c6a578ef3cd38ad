#pragma once
// What a GPU's kernels do in a step.

#include <functional>
#include <nlohmann/json.hpp>

namespace memsieve::bench {

/// Of all kernels and copies that the GPU runs for `body`, which must wait for them before it returns: milliseconds by
/// kind (matmul, convolution, attention, communication, copy, other), their sum, and of each of the longest ten. Traced
/// by torch's profiler (Kineto, CUPTI); kinds are told by the kernels' names. Empty without a GPU.
nlohmann::ordered_json kernel_times(const std::function<void()>& body);

/// By its name, such as "sm90_xmma_gemm_bf16bf16_...".
const char* kernel_kind(const std::string& name);

}  // namespace memsieve::bench
