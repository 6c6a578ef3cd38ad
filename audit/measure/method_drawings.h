#pragma once
// The same prompts drawn by several methods, from the same noise.

#include <audit/measure/mitigation.h>
#include <audit/output/measurements.h>
#include <diffusion/models/vae/picture_decoder.h>

#include <functional>
#include <string>
#include <vector>

namespace memsieve::audit {

/// Adds to `rows`, one for each drawing. shown: [B, 3, H, W] uint8 on the CPU; without a decoder the latents
/// [B, C, H, W] float32.
using AddMeasures =
    std::function<void(const std::vector<Drawing>& batch, const at::Tensor& shown, std::vector<Json>& rows)>;

struct MethodDrawings {
  std::vector<const Mitigation*> methods;
  MitigationOptions options;
  /// null: latents are shown
  PictureDecoder* decoder = nullptr;
  /// name of the set of prompts
  std::string set = "prompts";
  /// what the units' names begin with, before the method's: "" or "MODEL/"
  std::string unit_prefix = {};
  /// and behind it: "" or "/SET"
  std::string unit_suffix = {};
  /// folder that pictures/ is written to
  std::string folder = {};
};

/// The names of the units of a batch, method by method, as draw_by_methods answers.
std::vector<std::string> units_of(const std::vector<Drawing>& batch, const MethodDrawings& asked);

/// A row for each method and drawing:
///   magnitude            [steps] (magnitude())
///   similarity_to_plain  correlation() with the drawing of the first method
///   what `measures` adds, the method's notes, and `picture`, its file, where there is a decoder
/// Throws DataError, NonFiniteError.
std::vector<Json> draw_by_methods(const std::vector<Drawing>& batch, const Prompts& prompts, AuditedModel& model,
                                  const MethodDrawings& asked, const AddMeasures& measures);

}  // namespace memsieve::audit
