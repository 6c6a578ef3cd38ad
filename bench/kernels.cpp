#include "kernels.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace memsieve::bench {

namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

constexpr std::array kKinds = {"matmul", "convolution", "attention", "communication", "copy", "other"};

/// Parts of names in lower case. The first that fits counts: a convolution's kernel may be called an implicit gemm.
constexpr std::pair<const char*, const char*> kNames[] = {
    {"nccl", "communication"},
    {"memcpy", "copy"},
    {"memset", "copy"},
    {"flash", "attention"},
    {"fmha", "attention"},
    {"sdpa", "attention"},
    {"attention", "attention"},
    {"attn", "attention"},
    {"conv", "convolution"},
    {"fprop", "convolution"},
    {"dgrad", "convolution"},
    {"wgrad", "convolution"},
    {"cudnn", "convolution"},
    {"nchwtonhwc", "convolution"},
    {"nhwctonchw", "convolution"},
    {"gemm", "matmul"},
    {"gemv", "matmul"},
    {"cublas", "matmul"},
    {"nvjet", "matmul"},
    {"splitk", "matmul"},
    {"cutlass", "matmul"},
};

}  // namespace

const char* kernel_kind(const std::string& name) {
  std::string lower = name;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const auto& [part, kind] : kNames)
    if (lower.find(part) != std::string::npos) return kind;
  return "other";
}

nlohmann::ordered_json kernel_times(const std::function<void()>& body) {
  const profiler::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  const std::set<ActivityType> activities = {ActivityType::CPU, ActivityType::CUDA};
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  body();
  const auto result = profiler::disableProfiler();
  std::map<std::string, double> by_name, by_kind;
  double sum = 0;
  for (const auto& event : result->events()) {
    const bool annotation = event.name().starts_with("nccl:");  // c10d's, around its kernel
    if (event.deviceType() != c10::DeviceType::CUDA || annotation) continue;
    const double ms = 1e-6 * static_cast<double>(event.durationNs());
    by_name[event.name()] += ms;
    by_kind[kernel_kind(event.name())] += ms;
    sum += ms;
  }
  if (by_name.empty()) return nlohmann::ordered_json::object();
  nlohmann::ordered_json out{{"gpu_busy_ms", sum}};
  for (const char* kind : kKinds) out["kinds_ms"][kind] = by_kind[kind];
  std::vector<std::pair<std::string, double>> longest(by_name.begin(), by_name.end());
  std::sort(longest.begin(), longest.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  longest.resize(std::min<size_t>(longest.size(), 10));
  for (const auto& [name, ms] : longest) out["longest_ms"][name.substr(0, 100)] = ms;
  return out;
}

}  // namespace memsieve::bench
