#pragma once
// Which pictures are drawn for prompts, and what drawing starts from: keyed by prompt and picture, never by rank.

#include <ATen/core/Tensor.h>
#include <audit/data/prompts.h>
#include <diffusion/noise/keyed.h>

#include <string>
#include <vector>

namespace memsieve::audit {

/// Picture `picture` of prompt `prompt`.
struct Drawing {
  int64_t prompt = 0;
  int64_t picture = 0;
  /// the row whose caption is drawn, a variant of the prompt's; -1 = the prompt itself. The noise is that of the
  /// prompt in either case
  int64_t row = -1;
};

/// 0 .. count - 1.
std::vector<int64_t> first_rows(int64_t count);

/// Pictures 0 .. pictures - 1 of each of `prompts`, `rows` at a time; the last batch may be smaller.
std::vector<std::vector<Drawing>> drawings(const std::vector<int64_t>& prompts, int64_t pictures, int64_t rows);
/// The same of prompts 0 .. prompts - 1.
std::vector<std::vector<Drawing>> drawings(int64_t prompts, int64_t pictures, int64_t rows);

/// The prompt of each drawing.
std::vector<int64_t> prompts_of(const std::vector<Drawing>& batch);

/// Place of the first end token of each drawing's prompt. Only for prompts with tokens.
std::vector<int64_t> end_tokens(const std::vector<Drawing>& batch, const Prompts& prompts);

/// "prompts/3/0".
std::string unit_name(const std::string& set, const Drawing& drawing);

/// What a batch of drawings starts from, on the device.
struct DrawingStart {
  /// [B, C, H, W] float32
  at::Tensor noise;
  /// of B rows
  Conditioning condition;
  /// the empty caption, of none
  Conditioning null;
};

/// Noise keyed by (seed, prompt, picture) in `stream`. With Stream::draw_noise it is that of the pictures which
/// memsieve-train draws with the same seed.
DrawingStart start_of(const Prompts& prompts, const std::vector<Drawing>& batch, uint64_t seed, Stream stream,
                      c10::Device device);

/// [B] float32, differentiable: the text-conditional magnitude, by the function that training measures with, too
/// (that of builtin_signals).
at::Tensor magnitude(const at::Tensor& captioned, const at::Tensor& null);

/// Throws NonFiniteError, naming the prompt and `what`, unless all of `values` [B, ...] are finite.
void require_finite_rows(const at::Tensor& values, const std::string& what, const std::vector<Drawing>& batch,
                         const Prompts& prompts);

/// The values of a tensor, row by row.
std::vector<double> numbers(const at::Tensor& values);

}  // namespace memsieve::audit
