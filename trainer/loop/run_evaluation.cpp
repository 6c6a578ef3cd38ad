#include <ATen/ATen.h>
#include <diffusion/io/atomic_file.h>
#include <diffusion/io/contact_sheet.h>
#include <runtime/agreement.h>
#include <runtime/log.h>
#include <trainer/loop/run_evaluation.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <numeric>

namespace memsieve::trainer {

namespace {

/// [P, S, ...] as [rows, prompts_per_row * S, ...]: a sheet about as wide as high, the pictures of a prompt side
/// by side.
at::Tensor as_sheet(const at::Tensor& images) {
  const int64_t prompts = images.size(0), seeds = images.size(1);
  const auto side = std::sqrt(static_cast<double>(prompts * seeds));
  const int64_t in_a_row = std::clamp<int64_t>(std::llround(side / static_cast<double>(seeds)), 1, prompts);
  const int64_t rows = (prompts + in_a_row - 1) / in_a_row;
  auto shape = images.sizes().vec();
  shape[0] = rows * in_a_row;
  at::Tensor sheet = at::full(shape, 255, images.options());
  sheet.narrow(0, 0, prompts).copy_(images);
  return sheet.view({rows, in_a_row * seeds, shape[2], shape[3], shape[4]});
}

}  // namespace

void RunEvaluation::run(int64_t step, bool end, const std::function<void()>& before_log) const {
  if (!is_due(step, end)) return;
  const WithEma averaged(parts_.ema);
  if (validates(step, end)) {
    const ValidationLoss v = validate(parts_.model, *parts_.validation, parts_.group, options_.validation);
    parts_.metrics.validation(step, v.loss, v.rows);
    char text[64];
    std::snprintf(text, sizeof text, "%.5f", v.loss);
    before_log();
    log_info("validation loss after " + std::to_string(step) + " steps: " + text);
  }
  if (draws(step, end)) draw(step);
}

void RunEvaluation::draw(int64_t step) const {
  const at::Tensor images =
      draw_samples(parts_.model, *parts_.prompts, *parts_.pictures, parts_.schedule, parts_.group, options_.draw);
  on_all_ranks(parts_.group, [&] {
    if (parts_.group.rank() != 0) return;
    const RunFolder& folder = parts_.folder;
    const std::string name = "samples/" + step_name(step);
    std::error_code error;
    std::filesystem::create_directory(folder.file("samples"), error);
    write_samples(folder.file(name + ".h5"), images);
    write_captions();
    const int64_t zoom = std::max(images.size(-2), images.size(-1)) < 128 ? 2 : 1;
    write_contact_sheet(folder.file(name + ".png"), as_sheet(images), {.margin = 2, .zoom = zoom});
    parts_.metrics.samples(step, name + ".h5", name + ".png");
  });
}

/// samples/captions.txt: line p is the caption of the sheet's p-th prompt, left to right, then down.
void RunEvaluation::write_captions() const {
  std::vector<int64_t> all(static_cast<size_t>(parts_.prompts->size()));
  std::iota(all.begin(), all.end(), 0);
  std::string text;
  for (std::string caption : parts_.prompts->captions(all)) {
    std::replace_if(
        caption.begin(), caption.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
    text += caption + "\n";
  }
  write_text_atomically(parts_.folder.file("samples/captions.txt"), text);
}

}  // namespace memsieve::trainer
