#include <ATen/ATen.h>
#include <audit/measure/drawing.h>
#include <memsieve/detail/printable.h>
#include <memsieve/error.h>
#include <memsieve/signal.h>

#include <algorithm>
#include <numeric>

namespace memsieve::audit {

std::vector<int64_t> first_rows(int64_t count) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

std::vector<std::vector<Drawing>> drawings(const std::vector<int64_t>& prompts, int64_t pictures, int64_t rows) {
  std::vector<std::vector<Drawing>> batches;
  const int64_t total = static_cast<int64_t>(prompts.size()) * pictures;
  for (int64_t begin = 0; begin < total; begin += rows) {
    auto& batch = batches.emplace_back();
    for (int64_t i = begin; i < std::min(total, begin + rows); ++i)
      batch.push_back({.prompt = prompts[static_cast<size_t>(i / pictures)], .picture = i % pictures});
  }
  return batches;
}

std::vector<std::vector<Drawing>> drawings(int64_t prompts, int64_t pictures, int64_t rows) {
  return drawings(first_rows(prompts), pictures, rows);
}

std::vector<int64_t> prompts_of(const std::vector<Drawing>& batch) {
  std::vector<int64_t> ids;
  ids.reserve(batch.size());
  for (const Drawing& drawing : batch) ids.push_back(drawing.prompt);
  return ids;
}

std::vector<int64_t> end_tokens(const std::vector<Drawing>& batch, const Prompts& prompts) {
  std::vector<int64_t> ends;
  ends.reserve(batch.size());
  for (const Drawing& drawing : batch) ends.push_back(prompts.end_token(drawing.prompt));
  return ends;
}

std::string unit_name(const std::string& set, const Drawing& drawing) {
  return set + "/" + std::to_string(drawing.prompt) + "/" + std::to_string(drawing.picture);
}

DrawingStart start_of(const Prompts& prompts, const std::vector<Drawing>& batch, uint64_t seed, Stream stream,
                      c10::Device device) {
  std::vector<int64_t> ids;
  std::vector<RowKey> keys;
  for (const Drawing& drawing : batch) {
    ids.push_back(drawing.row < 0 ? drawing.prompt : drawing.row);
    keys.push_back({drawing.prompt, drawing.picture});
  }
  return {.noise = keyed_normal(seed, stream, keys, prompts.data().latent_shape()).to(device),
          .condition = prompts.data().load(ids).condition.to(device),
          .null = prompts.data().null().to(device)};
}

at::Tensor magnitude(const at::Tensor& captioned, const at::Tensor& null) {
  static const SignalRegistry signals = builtin_signals();
  return signals.find("magnitude")
      ->measure({.timestep = {}, .prediction = captioned, .target = {}, .counterfactual = null});
}

void require_finite_rows(const at::Tensor& values, const std::string& what, const std::vector<Drawing>& batch,
                         const Prompts& prompts) {
  const at::Tensor fine = values.detach().isfinite().reshape({values.size(0), -1}).all(1).cpu();
  for (size_t i = 0; i < batch.size(); ++i) {
    if (fine[static_cast<int64_t>(i)].item<bool>()) continue;
    throw NonFiniteError(prompts.data().path() + ": prompt " + std::to_string(batch[i].prompt) + " (" +
                         detail::in_quotes(prompts.data().captions({batch[i].prompt}).front()) + "), picture " +
                         std::to_string(batch[i].picture) + ": " + what +
                         " is NaN or Inf; use mixed_precision no or bf16, or a sound model");
  }
}

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor host = values.detach().to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

}  // namespace memsieve::audit
